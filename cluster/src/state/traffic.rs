//! What is wrong with what a service says of its traffic.

use ipnet::IpNet;
use model::{Name, ServiceSpec, spec::Timeouts};

use super::Refusal;

pub(super) fn check(name: &Name, spec: &ServiceSpec) -> Result<(), Refusal> {
    if spec.allow_from.len() > ServiceSpec::MAX_ALLOW_FROM {
        return Err(Refusal::invalid(
            format!("{} sources may be allowed at most", ServiceSpec::MAX_ALLOW_FROM),
            "--allow-from with larger networks",
        ));
    }
    for net in &spec.allow_from {
        if net.trunc() != *net {
            return Err(Refusal::invalid(
                format!("the allowed source {net} has host bits set"),
                format!("netctl service update {name} --allow-from {}", net.trunc()),
            ));
        }
        if matches!(net, IpNet::V6(n) if n.addr().to_ipv4_mapped().is_some()) {
            return Err(Refusal::invalid(
                format!("the allowed source {net} is never seen: IPv4 clients have IPv4 addresses"),
                format!("netctl service update {name} --allow-from 192.0.2.0/24"),
            ));
        }
    }
    if !spec.timeouts.fit() {
        return Err(Refusal::invalid(
            format!(
                "a timeout of flows is not between 1 s and {} days",
                Timeouts::MAX / 86_400
            ),
            format!("netctl service update {name} --idle-timeout tcp=2h,udp=5m"),
        ));
    }
    Ok(())
}
