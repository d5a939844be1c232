//! Scripts of runs that were wrong once, in the cores or in what is asked of them.

use sim::{Script, run};

#[test]
fn what_was_found_once_is_not_found_again() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/found");
    let mut count = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let script = Script::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(run(&script, false).violation, None, "{}", path.display());
        count += 1;
    }
    assert!(count > 0);
}
