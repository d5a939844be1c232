//! Runs seeds.

fn main() {
    let from: u64 = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(0);
    let n: u64 = std::env::args().nth(2).and_then(|a| a.parse().ok()).unwrap_or(1);
    for seed in from..from + n {
        let script = sim::Script::generate(seed);
        println!("{seed}: {:?}", sim::run(&script, std::env::var("T").is_ok()));
    }
}
