//! What would come of a change, without making it.

use model::{Name, ServiceSpec, intent::Placed};

use super::{Command, Refusal, State};
use crate::placement::Move;

/// A change that is only looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proposal {
    /// A service is made, or becomes this.
    Spec(Box<ServiceSpec>),
    /// It is scaled.
    Replicas(u32),
    /// It is rebalanced, with a budget.
    Rebalance(u32),
}

/// What would come of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Preview {
    /// Where the slots are.
    pub before: Placed,
    /// Where they would be.
    pub after: Placed,
    /// Slots that would go on on another node.
    pub moves: Vec<Move>,
    /// What would be missing.
    pub problem: Option<String>,
}

impl State {
    /// What would come of a change of a service, by the very code that would make it. To be asked of a copy: this state is
    /// changed by it.
    pub fn preview(mut self, name: &Name, proposal: &Proposal) -> Result<Preview, Refusal> {
        let copy = &mut self;
        let placed = |s: &State| s.intent.placements.get(name).map(|p| (**p).clone()).unwrap_or_default();
        let before = placed(copy);
        let index = copy.applied + 1;
        match proposal {
            Proposal::Spec(spec) => {
                let old = copy.intent.services.get(name).cloned();
                copy.put_service(index, name, (**spec).clone(), old)?
            }
            Proposal::Replicas(replicas) => copy.run(
                index,
                &Command::Scale {
                    name: name.clone(),
                    replicas: *replicas,
                },
            )?,
            Proposal::Rebalance(budget) => copy.rebalance(index, name, *budget)?,
        };
        let after = placed(copy);
        Ok(Preview {
            moves: Move::between(&before, &after),
            before,
            after,
            problem: copy.intent.services.get(name).and_then(|s| s.problem.clone()),
        })
    }
}
