//! Every name of the cluster, and who may see which.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use model::{
    EndpointRow, EndpointState, Intent, Name, PortSpec, PublishMode, Vni, intent::Service, spec::EndpointMode,
};

/// The networks that a namespace may see. In this order: a short name stands for the first network that has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct View {
    /// Networks.
    pub networks: Vec<Vni>,
}

/// Addresses of a name, each family ascending, without duplicates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addresses {
    /// IPv4 (A).
    pub v4: Vec<Ipv4Addr>,
    /// IPv6 (AAAA).
    pub v6: Vec<Ipv6Addr>,
}

impl Addresses {
    fn add(&mut self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        self.v4.extend(v4);
        self.v6.extend(v6);
    }
    fn seal(&mut self) {
        self.v4.sort_unstable();
        self.v4.dedup();
        self.v6.sort_unstable();
        self.v6.dedup();
    }
}

/// A label in lower case.
pub(crate) type Label = Arc<[u8]>;

/// Every name of the cluster at one moment. Built whole at each change (a million addresses take less than a second) and
/// then only read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    pub(crate) networks: BTreeMap<Label, Vni>,
    pub(crate) by_vni: BTreeMap<Vni, Net>,
    pub(crate) services: BTreeMap<Label, ServiceNames>,
    pub(crate) reverse: BTreeMap<IpAddr, Pointer>,
    pub(crate) subnets: Vec<IpNet>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Net {
    pub(crate) name: Label,
    pub(crate) internal: bool,
}

/// A service's names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ServiceNames {
    pub(crate) on: BTreeMap<Vni, Names>,
    /// Those that its VIPs have.
    pub(crate) ports: BTreeSet<PortSpec>,
    /// It has no VIP: its name means its tasks.
    pub(crate) itself: bool,
}

/// A service's names on one network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Names {
    /// `web`
    pub(crate) vip: Addresses,
    /// `tasks.web`
    pub(crate) tasks: Addresses,
    /// `<slot>.web`
    pub(crate) slots: BTreeMap<u32, Addresses>,
}

/// What an address is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pointer {
    pub(crate) vni: Vni,
    pub(crate) service: Label,
    pub(crate) form: Form,
}

/// Which of a service's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    /// `web`
    Vip,
    /// `tasks.web`
    Tasks,
    /// `<slot>.web`
    Slot(u32),
}

fn label(name: &Name) -> Label {
    name.as_str().as_bytes().into()
}

impl Table {
    /// Builds the table from intent and the endpoints of all nodes that are thought alive. Endpoints that are not ready
    /// have no names, but their addresses have (a reverse lookup in a log should say who it was). Endpoints of services
    /// or networks that the intent does not hold are passed over.
    pub fn new<'a>(intent: &Intent, endpoints: impl IntoIterator<Item = &'a EndpointRow>) -> Self {
        let mut out = Table::default();
        for (name, network) in &intent.networks {
            let name = label(name);
            out.networks.insert(name.clone(), network.vni);
            out.by_vni.insert(
                network.vni,
                Net {
                    name,
                    internal: network.internal,
                },
            );
            out.subnets.push(IpNet::V4(network.subnet));
            out.subnets.extend(network.subnet6.map(IpNet::V6));
        }
        for (name, service) in &intent.services {
            out.add_service(intent, label(name), service);
        }
        for row in endpoints {
            out.add_endpoint(row);
        }
        for names in out.services.values_mut().flat_map(|s| s.on.values_mut()) {
            names.tasks.seal();
            names.slots.values_mut().for_each(Addresses::seal);
        }
        out
    }

    fn add_service(&mut self, intent: &Intent, name: Label, service: &Service) {
        let of_mesh = service.ports.values().filter(|p| p.spec.mode == PublishMode::Ingress);
        let mut names = ServiceNames {
            ports: of_mesh.map(|p| p.spec).collect(),
            itself: service.spec.endpoint_mode == EndpointMode::Dnsrr,
            ..ServiceNames::default()
        };
        for network in service.spec.networks.iter().chain(service.vips.keys()) {
            let Some(vni) = intent.networks.get(network).map(|n| n.vni) else {
                continue;
            };
            let on = names.on.entry(vni).or_default();
            let Some(vip) = service.vips.get(network) else { continue };
            on.vip = Addresses {
                v4: vec![vip.v4],
                v6: vip.v6.into_iter().collect(),
            };
            self.point(
                Some(vip.v4),
                vip.v6,
                Pointer {
                    vni,
                    service: name.clone(),
                    form: Form::Vip,
                },
            );
        }
        self.services.insert(name, names);
    }

    fn add_endpoint(&mut self, row: &EndpointRow) {
        let Some(service) = &row.service else { return };
        let Some((name, names)) = self.services.get_key_value(service.as_str().as_bytes()) else {
            return;
        };
        if !names.on.contains_key(&row.vni) {
            return;
        }
        let name = name.clone();
        let on = self.services.get_mut(&name).and_then(|s| s.on.get_mut(&row.vni));
        if let (Some(on), EndpointState::Ready) = (on, row.state) {
            on.tasks.add(row.v4, row.v6);
            if let Some(slot) = row.slot {
                on.slots.entry(slot).or_default().add(row.v4, row.v6);
            }
        }
        let form = row.slot.map_or(Form::Tasks, Form::Slot);
        self.point(
            row.v4,
            row.v6,
            Pointer {
                vni: row.vni,
                service: name,
                form,
            },
        );
    }

    /// A VIP's name is never taken over by an endpoint that claims its address.
    fn point(&mut self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>, to: Pointer) {
        for ip in [v4.map(IpAddr::V4), v6.map(IpAddr::V6)].into_iter().flatten() {
            let taken = self
                .reverse
                .get(&ip)
                .is_some_and(|had| had.form == Form::Vip && to.form != Form::Vip);
            if !taken {
                self.reverse.insert(ip, to.clone());
            }
        }
    }

    /// Whether foreign names are forwarded for a view: some network of it lets its tasks out.
    pub(crate) fn forwards(&self, view: &View) -> bool {
        view.networks
            .iter()
            .filter_map(|vni| self.by_vni.get(vni))
            .any(|n| !n.internal)
    }

    /// A name qualified with its network, in wire form: `1.web.app.`
    pub(crate) fn wire(&self, vni: Vni, service: &[u8], form: Form) -> Option<Vec<u8>> {
        let network = &self.by_vni.get(&vni)?.name;
        Some(wire(service, form, Some(network)))
    }
}

/// A name in wire form, with its network or without.
pub(crate) fn wire(service: &[u8], form: Form, network: Option<&[u8]>) -> Vec<u8> {
    let mut out = Vec::with_capacity(32);
    let mut push = |label: &[u8]| {
        // Labels come from `Name`, which has 1 to 63 octets, or are short numbers.
        out.push(label.len() as u8);
        out.extend(label);
    };
    match form {
        Form::Vip => {}
        Form::Tasks => push(b"tasks"),
        Form::Slot(n) => push(n.to_string().as_bytes()),
    }
    push(service);
    network.into_iter().for_each(&mut push);
    out.push(0);
    out
}
