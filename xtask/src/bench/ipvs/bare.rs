//! The contender `ipvs`: the kernel's own balancer with nothing around it.
//!
//! As `direct`, but the client asks n1, where a virtual server (by address, no marks, rr, masquerading) sends it on to the
//! backend; the backend's default route leads back through n1, so that the client keeps its address. One could not run
//! published ports like that: each node would have to be each backend's way out.

use std::path::Path;

use anyhow::Context;

use super::{Side, answers, direct, lines};

const PORT: u16 = 80;

pub(super) fn side(programs: &Path) -> anyhow::Result<Side> {
    let (lab, backend) = direct::lab("bench-ipvs", programs)?;
    let n1 = lab.host("n1")?;
    let target = n1.at(PORT);
    lines(
        n1,
        &format!("ipvsadm -A -t {target} -s rr; ipvsadm -a -t {target} -r {backend} -m"),
    )?;
    answers(&lab, &target, lab.client()?.v4().into()).context("the bare virtual server")?;
    Ok(Side { lab, target })
}
