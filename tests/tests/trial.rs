//! Trial.
use tests::{in_lab,ports_of_its_own};
#[test]
fn trial() {
    in_lab("trial", 1, |lab| {
        let client = lab.client()?;
        for r in 0..3 {
            ports_of_its_own(client, r)?;
            let out = client.run(&["python3", "/tmp/w/ip6/target/trial/port.py"])?;
            println!("{}{}", out.stdout, out.stderr);
        }
        Ok(())
    });
}
