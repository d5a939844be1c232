//! Stories to read: each file of `scripts` is played line by line; the snapshots beside it show what came of it.
//!
//! Lines: `node n1 [LABEL=VALUE ..] [is=down|pause|drain|manager|avoid] [tasks=N] [max=N] [cpu=MILLI] [memory=MIB]
//! [arch=..] [address=..] [hostname=..]` makes or changes a node, `gone n1` takes it away; `other db n1 n2` says where
//! another service is; `taken n1 80/tcp` that a port is held there; `ask web WISH ..` asks anew (of another service than before,
//! nothing runs), `place` and
//! `rebalance N` show what comes of it. Wishes: `replicas=N`, `global`, `constraint=..`, `near=..`, `apart=..`, `after=..`,
//! `spread=..`, `strategy=..`, `per-node=N`, `cpu=MILLI`, `memory=MIB`, `port=80/tcp`.

use super::*;

#[derive(Default)]
struct Script {
    world: World,
    avoid: BTreeSet<NodeId>,
    others: BTreeMap<Name, Placed>,
    taken: BTreeMap<NodeId, BTreeSet<String>>,
    placed: Placed,
    service: Option<Name>,
    mode: Mode,
    replicas: u32,
    spec: PlacementSpec,
    ports: BTreeSet<String>,
    out: String,
}

const MIB: u64 = 1 << 20;

fn range(slots: &SlotSet) -> String {
    let one = |(a, b): &(u32, u32)| match a == b {
        true => a.to_string(),
        false => format!("{a}-{b}"),
    };
    slots.0.iter().map(one).collect::<Vec<_>>().join(",")
}

impl Script {
    fn line(&mut self, line: &str) {
        self.out.push_str(line);
        self.out.push('\n');
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] | ["#", ..] => {}
            ["node", id, rest @ ..] => self.node(id.parse().unwrap(), rest),
            ["gone", id] => drop(self.world.remove(&id.parse().unwrap())),
            ["other", name, on @ ..] => {
                let slots = on
                    .iter()
                    .zip(1..)
                    .map(|(n, slot)| (n.parse().unwrap(), SlotSet(vec![(slot, slot)])));
                self.others.insert(name.parse().unwrap(), slots.collect());
            }
            ["taken", id, port] => {
                let ports = self.taken.entry(id.parse().unwrap()).or_default();
                ports.insert((*port).to_owned());
            }
            ["ask", name, wishes @ ..] => self.ask(name, wishes),
            ["place"] => self.show(place),
            ["rebalance", n] => self.show(|before, hosts, ask| rebalance(before, hosts, ask, n.parse().unwrap())),
            other => panic!("no such line: {other:?}"),
        }
    }

    fn node(&mut self, id: NodeId, rest: &[&str]) {
        let (n, load) = self
            .world
            .entry(id)
            .or_insert_with(|| (node(&format!("host{}", id.0)), Load::default()));
        for word in rest {
            let (key, value) = word.split_once('=').unwrap();
            match key {
                "is" => {
                    n.down = value == "down";
                    n.availability = match value {
                        "pause" => Availability::Pause,
                        "drain" => Availability::Drain,
                        _ => Availability::Active,
                    };
                    if value == "manager" {
                        n.role = model::intent::Role::Manager;
                    }
                    if value == "avoid" {
                        self.avoid.insert(id);
                    } else {
                        self.avoid.remove(&id);
                    }
                }
                "tasks" => load.tasks = value.parse().unwrap(),
                "used-cpu" => load.reserved.cpu_milli = value.parse().unwrap(),
                "max" => n.max_tasks = value.parse().ok(),
                "cpu" => n.machine.capacity.cpu_milli = value.parse().unwrap(),
                "memory" => n.machine.capacity.memory = value.parse::<u64>().unwrap() * MIB,
                "arch" => n.machine.arch = value.into(),
                "address" => n.machine.address = value.parse().ok(),
                "hostname" => n.hostname = value.into(),
                label => drop(n.labels.insert(label.into(), value.into())),
            }
        }
    }

    fn ask(&mut self, name: &str, wishes: &[&str]) {
        let service = name.parse().ok();
        if self.service != service {
            self.placed.clear();
        }
        self.service = service;
        (self.mode, self.replicas) = (Mode::Replicated, 1);
        self.spec = PlacementSpec::default();
        self.ports.clear();
        for wish in wishes {
            let (key, value) = wish.split_once('=').unwrap_or((wish, ""));
            let number = || value.parse().unwrap();
            match key {
                "replicas" => self.replicas = value.parse().unwrap(),
                "global" => self.mode = Mode::Global,
                "constraint" => self.spec.constraints.push(value.into()),
                "near" => self.spec.near.push(value.parse().unwrap()),
                "apart" => self.spec.apart.push(value.parse().unwrap()),
                "after" => self.spec.after.push(value.parse().unwrap()),
                "spread" => self.spec.spread.push(value.into()),
                "strategy" => self.spec.strategy = serde_json::from_value(value.into()).unwrap(),
                "per-node" => self.spec.max_per_node = value.parse().ok(),
                "cpu" => self.spec.reserve.cpu_milli = number(),
                "memory" => self.spec.reserve.memory = number() * MIB,
                "port" => drop(self.ports.insert(value.into())),
                other => panic!("no such wish: {other}"),
            }
        }
    }

    fn show(&mut self, how: impl FnOnce(&Placed, &[Host<'_>], &Request<'_>) -> Plan) {
        let name = self.service.clone().unwrap();
        let other = |names: &[Name]| -> Vec<(Name, Option<Placed>)> {
            names.iter().map(|n| (n.clone(), self.others.get(n).cloned())).collect()
        };
        let [near, apart, after] = [other(&self.spec.near), other(&self.spec.apart), other(&self.spec.after)];
        let mut ask = Request::new(&name, &self.spec, self.replicas);
        ask.mode = self.mode;
        ask.near = near.iter().map(to_other).collect();
        ask.apart = apart.iter().map(to_other).collect();
        ask.after = after.iter().map(to_other).collect();
        ask.host_ports = self.ports.clone();
        ask.taken = self.taken.clone();
        let mut hosts = hosts(&self.world);
        for h in &mut hosts {
            h.avoid = self.avoid.contains(&h.id);
        }
        let plan = how(&self.placed, &hosts, &ask);
        for (id, slots) in &plan.placed {
            self.out.push_str(&format!("    {id}: {}\n", range(slots)));
        }
        for m in &plan.moves {
            let to = m.to.map_or("nowhere".to_owned(), |to| to.to_string());
            self.out
                .push_str(&format!("    moved {} from {} to {to}\n", range(&m.slots), m.from));
        }
        if let Some(text) = problem(&plan, &ask) {
            self.out.push_str(&format!("    {text}\n"));
        }
        self.placed = plan.placed;
    }
}

fn to_other(o: &(Name, Option<Placed>)) -> Other<'_> {
    Other {
        name: &o.0,
        exists: o.1.is_some(),
        placed: o.1.as_ref(),
    }
}

fn play(script: &str) -> String {
    let mut s = Script::default();
    script.lines().for_each(|line| s.line(line));
    s.out
}

macro_rules! stories {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            let script = include_str!(concat!("scripts/", stringify!($name), ".txt"));
            insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
                insta::assert_snapshot!(stringify!($name), play(script));
            });
        })+
    };
}

stories!(health_and_availability avoid constraints affinity host_ports slots after reservations spread labels binpack random global rebalancing);
