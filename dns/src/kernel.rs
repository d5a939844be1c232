//! The names that a program in the kernel answers from (CONTRACTS 8; EBPF, Names in the kernel).

use std::collections::BTreeMap;

use model::Vni;

use crate::table::{Addresses, Form, Table, wire};

/// Key of the kernel's table. The program looks a name up for each network of the asker's view, in the view's order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Network.
    pub network: Vni,
    /// Name in wire form (RFC 1035 3.1), lower case, with the root's octet; at most 141 octets.
    pub name: Vec<u8>,
}

/// Every name that stands for addresses: `web`, `tasks.web`, `<slot>.web`, each also with its network. A family without
/// addresses is NODATA; other types, other names and what does not fit the program's limits are left to user space.
pub fn entries(table: &Table) -> BTreeMap<Key, &Addresses> {
    let mut out = BTreeMap::new();
    for (service, names) in &table.services {
        for (vni, on) in &names.on {
            let Some(network) = table.by_vni.get(vni) else { continue };
            let slots = on.slots.iter().map(|(n, a)| (Form::Slot(*n), a));
            for (form, addresses) in [(Form::Vip, &on.vip), (Form::Tasks, &on.tasks)]
                .into_iter()
                .chain(slots)
            {
                for network in [None, Some(&*network.name)] {
                    let name = wire(service, form, network);
                    out.insert(Key { network: *vni, name }, addresses);
                }
            }
        }
    }
    out
}
