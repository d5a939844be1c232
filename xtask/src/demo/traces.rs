//! What strace saw of netd.

use lab::Lab;

use super::show::Show;

pub(super) fn nothing(lab: &Lab, show: &mut Show) {
    for node in lab.nodes() {
        let what = format!("programs executed by netd on {}", node.name());
        match node.executed_by_netd() {
            Ok(calls) => {
                let text = if calls.is_empty() {
                    "none".to_owned()
                } else {
                    calls.join(" | ")
                };
                show.expect(&what, "none", text, calls.is_empty());
            }
            Err(error) => show.expect(&what, "none", format!("{error:#}"), false),
        }
    }
}
