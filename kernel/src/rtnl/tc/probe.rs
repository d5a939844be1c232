//! What of tc the kernel has.

use model::Mac;
use overlay::{Classifier, FIRST_PRIORITY, Hook, MaskedMark, Match, Verdict};

use super::{add, add_clsact};
use crate::rtnl::{Rtnl, RtnlError};

/// A part of tc that filters need, and whether the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// What is missing.
    pub what: &'static str,
    /// Build option.
    pub option: &'static str,
    /// Module with it.
    pub module: &'static str,
}

/// What the kernel lacks for filters, found by trying in a namespace that ends with the trial. Empty: nothing.
pub fn lacks() -> Result<Vec<Lack>, RtnlError> {
    let frame = Match::Frame {
        mac: None,
        source: None,
        destination: None,
    };
    let drop_all = (Hook::Ingress, frame, Verdict::Drop);
    let set_mark = (Hook::Ingress, frame, Verdict::SetMark(1));
    let mark = MaskedMark {
        value: 1,
        mask: u32::MAX,
    };
    let by_mark = (Hook::Egress, Match::Mark(mark), Verdict::Drop);
    let set_mac = (Hook::Egress, frame, Verdict::SetDestination(Mac([2; 6])));
    let keep = (
        Hook::Egress,
        frame,
        Verdict::Keep {
            connection: 0,
            packet: 0,
        },
    );
    let recall = (Hook::Ingress, frame, Verdict::Recall);
    let redirect = (Hook::Ingress, frame, Verdict::ToHost(Mac([2; 6])));
    let trials = [
        (
            drop_all,
            "the classifier flower, or the action gact",
            "CONFIG_NET_CLS_FLOWER, CONFIG_NET_ACT_GACT",
            "cls_flower, act_gact",
        ),
        (set_mark, "the action skbedit", "CONFIG_NET_ACT_SKBEDIT", "act_skbedit"),
        (by_mark, "the classifier fw", "CONFIG_NET_CLS_FW", "cls_fw"),
        (set_mac, "the action skbmod", "CONFIG_NET_ACT_SKBMOD", "act_skbmod"),
        (
            keep,
            "the action ct (Linux 5.3), or marks of connections",
            "CONFIG_NET_ACT_CT, CONFIG_NF_CONNTRACK_MARK",
            "act_ct",
        ),
        (
            recall,
            "the action connmark, or ct",
            "CONFIG_NET_ACT_CONNMARK, CONFIG_NET_ACT_CT",
            "act_connmark, act_ct",
        ),
        (redirect, "the action mirred", "CONFIG_NET_ACT_MIRRED", "act_mirred"),
    ];
    crate::netns::run_in_new(|| {
        let mut rtnl = Rtnl::open()?;
        let mut out = Vec::new();
        // The loopback has index 1 in every namespace.
        if !matches!(rtnl.execute(&[add_clsact(1)])?.as_slice(), [Ok(())]) {
            return Ok(vec![Lack {
                what: "the qdisc clsact",
                option: "CONFIG_NET_SCH_INGRESS",
                module: "sch_ingress",
            }]);
        }
        for (i, ((hook, on, verdict), what, option, module)) in (0..).zip(trials) {
            let classifier = Classifier {
                hook,
                priority: FIRST_PRIORITY + i,
                on,
                verdict,
            };
            if !matches!(rtnl.execute(&[add(1, &classifier, 1)])?.as_slice(), [Ok(())]) {
                out.push(Lack { what, option, module });
            }
        }
        Ok(out)
    })?
}
