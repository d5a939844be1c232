//! How long IPVS takes to be programmed: N services of M backends from nothing, then one backend changed at a time, and what
//! a daemon that starts anew has to read. In a namespace of its own, which is gone afterwards.
//!
//! `ipvs_load SERVICES BACKENDS rr|mh|... [4|6]` prints `key=value` lines; the exit status tells whether all went well.

#![allow(clippy::disallowed_methods, reason = "it measures time")]

use std::{
    env,
    error::Error,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::ExitCode,
    time::{Duration, Instant},
};

use kernel::{
    ipvs::{Ipvs, Report},
    netns,
};
use mesh::ipvs::{
    Dest, DestKey, Family, Forward, SchedFlags, Scheduler, Service, ServiceKey, Step, Table, Timeouts, mark_of, plan,
};

/// Changes of one backend that are timed.
const CHANGES: u32 = 101;

type Failure = Box<dyn Error + Send + Sync>;

struct Load {
    services: u32,
    backends: u32,
    scheduler: Scheduler,
    family: Family,
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let done = parse(&args).and_then(|load| netns::run_in_new(|| run(&load))?);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("ipvs_load: {e}");
            ExitCode::FAILURE
        }
    }
}

fn parse(args: &[String]) -> Result<Load, Failure> {
    let usage = "try: ipvs_load SERVICES BACKENDS mh|rr|wrr|lc|wlc|sh [4|6]";
    let [services, backends, scheduler, rest @ ..] = args else {
        return Err(usage.into());
    };
    let load = Load {
        services: services.parse().map_err(|_| usage)?,
        backends: backends.parse().map_err(|_| usage)?,
        scheduler: Scheduler::named(scheduler),
        family: match rest {
            [] => Family::V4,
            [f] if f == "4" => Family::V4,
            [f] if f == "6" => Family::V6,
            _ => return Err(usage.into()),
        },
    };
    let bounded = (1..=100_000).contains(&load.services) && (1..=100).contains(&load.backends);
    if !bounded || !Scheduler::ALL.contains(&load.scheduler) {
        return Err(format!("1-100000 services of 1-100 backends; {usage}").into());
    }
    Ok(load)
}

impl Load {
    fn key(&self, service: u32) -> Result<ServiceKey, Failure> {
        let mark = mark_of(service + 1).ok_or("too many services")?;
        Ok(ServiceKey {
            mark,
            family: self.family,
        })
    }

    fn dest(&self, service: u32, backend: u32) -> DestKey {
        let n = service * self.backends + backend + 1;
        let address = match self.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from((0xfd00_0080u128 << 96) + u128::from(n))),
        };
        DestKey { address, port: 8080 }
    }

    fn table(&self) -> Result<Table, Failure> {
        let service = |n| -> Result<_, Failure> {
            Ok((
                self.key(n)?,
                Service {
                    scheduler: self.scheduler,
                    flags: match self.scheduler {
                        Scheduler::Mh => SchedFlags::MAGLEV,
                        _ => SchedFlags::default(),
                    },
                    timeout: 0,
                    dests: (0..self.backends).map(|b| (self.dest(n, b), weight(1))).collect(),
                },
            ))
        };
        Ok(Table {
            services: (0..self.services).map(service).collect::<Result<_, Failure>>()?,
            timeouts: Timeouts::default(),
        })
    }
}

fn weight(weight: u32) -> Dest {
    Dest {
        weight,
        forward: Forward::Masquerade,
    }
}

fn run(load: &Load) -> Result<(), Failure> {
    let wanted = load.table()?;
    let mut ipvs = Ipvs::open()?;
    println!("services={}", load.services);
    println!("backends={}", load.services * load.backends);
    println!("scheduler={}", load.scheduler);

    // The scheduler's module is loaded by its first service, which is not what is timed.
    let first = load.key(0)?;
    let mut one = wanted.clone();
    one.services.retain(|key, _| *key == first);
    fine(ipvs.apply(&plan(&Table::default(), &one)))?;
    fine(ipvs.apply(&plan(&one, &Table::default())))?;

    let free = available()?;
    let begin = Instant::now();
    let seen = ipvs.observe()?;
    let steps = plan(&seen, &wanted);
    fine(ipvs.apply(&steps))?;
    let took = begin.elapsed();
    println!("program_steps={}", steps.len());
    println!("program_s={:.4}", took.as_secs_f64());
    println!("memory_kib={}", free.saturating_sub(available()?));

    // As by a daemon that starts: all is read, nothing is written.
    let begin = Instant::now();
    let seen = Ipvs::open()?.observe()?;
    let read = begin.elapsed();
    let begin = Instant::now();
    let steps = plan(&seen, &wanted);
    println!("observe_s={:.4}", read.as_secs_f64());
    println!("plan_again_s={:.4}", begin.elapsed().as_secs_f64());
    println!("plan_again_steps={}", steps.len());
    if seen != wanted {
        return Err("IPVS does not hold what it was told".into());
    }

    // One backend drains; one goes and another comes. Services far apart, so that no cache helps.
    let mut drains = Vec::new();
    let mut swaps = Vec::new();
    for i in 0..CHANGES {
        let n = i * (load.services / CHANGES).max(1) % load.services;
        let (service, dest) = (load.key(n)?, load.dest(n, 0));
        let set = |weight, new| Step::SetDest {
            service,
            dest,
            value: weight,
            new,
        };
        drains.push(timed(&mut ipvs, &[set(weight(0), false)])?);
        fine(ipvs.apply(&[set(weight(1), false)]))?;
        let swap = [Step::RemoveDest { service, dest }, set(weight(1), true)];
        swaps.push(timed(&mut ipvs, &swap)?);
    }
    println!("changes={CHANGES}");
    println!("change_us={:.1}", median(&mut drains));
    println!("change_max_us={:.1}", most(&drains));
    println!("swap_us={:.1}", median(&mut swaps));

    let begin = Instant::now();
    fine(ipvs.apply(&plan(&wanted, &Table::default())))?;
    println!("remove_s={:.4}", begin.elapsed().as_secs_f64());
    Ok(())
}

fn timed(ipvs: &mut Ipvs, steps: &[Step]) -> Result<Duration, Failure> {
    let begin = Instant::now();
    fine(ipvs.apply(steps))?;
    Ok(begin.elapsed())
}

fn fine(report: Report) -> Result<(), Failure> {
    match report.failed.into_iter().next() {
        None => Ok(()),
        Some((step, e)) => Err(format!("{step:?}: {e}").into()),
    }
}

/// Microseconds; sorts.
fn median(all: &mut [Duration]) -> f64 {
    all.sort_unstable();
    all.get(all.len() / 2).map_or(0.0, |d| d.as_secs_f64() * 1e6)
}

fn most(all: &[Duration]) -> f64 {
    all.iter().max().map_or(0.0, |d| d.as_secs_f64() * 1e6)
}

/// `MemAvailable` of /proc/meminfo, KiB.
fn available() -> Result<u64, Failure> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
    Ok(kib.ok_or("/proc/meminfo has no MemAvailable")?)
}
