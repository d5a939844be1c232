//! With planted faults (feature `mutants`): they are found, and a failing script is cut short and fails again from its
//! text.
#![cfg(feature = "mutants")]

use cluster::mutant::{Mutant, plant};
use sim::{Script, run, shrink};

#[test]
fn a_fault_is_found_and_its_script_cut_short() {
    let fault = Some(Mutant::AnswerBeforeCommit);
    plant(fault);
    let failing = (0..200)
        .map(Script::generate)
        .find(|s| run(s, false).violation.is_some());
    let script = failing.expect("a seed that finds it");
    let (_, violation) = run(&script, false).violation.unwrap();
    let short = shrink(&script, &violation, || plant(fault));
    assert!(
        short.acts.len() * 4 < script.acts.len(),
        "{} of {}",
        short.acts.len(),
        script.acts.len()
    );
    let again = run(&Script::parse(&short.print().unwrap()).unwrap(), false);
    assert_eq!(again.violation.map(|v| v.1.invariant), Some(violation.invariant));
    plant(None);
    assert_eq!(run(&short, false).violation, None, "without the fault all is well");
}
