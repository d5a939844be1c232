//! What managers alone may know, and who is let in by it.

use std::collections::BTreeMap;

use model::{
    Code,
    intent::{Availability, Role, Trust},
};

use super::{Applied, NewNode, Refusal, Secret, State};
use crate::mutant::{self, Mutant};

/// Name of the secret that workers join with.
pub const TOKEN_WORKER: &str = "token.worker";
/// Name of the secret that managers join with.
pub const TOKEN_MANAGER: &str = "token.manager";

impl State {
    /// A secret by name.
    pub fn secret(&self, name: &str) -> Option<&[u8]> {
        self.secrets.get(name).map(|s| s.0.as_slice())
    }

    /// All secrets.
    pub fn secrets(&self) -> &BTreeMap<String, Secret> {
        &self.secrets
    }

    /// Index of the entry that changed the secrets last; 0: the first command.
    pub fn secrets_at(&self) -> u64 {
        self.secrets_at
    }

    /// Index of the entry that removed a node last; 0: none was. What all nodes knew before is known to a stranger.
    pub fn removed_at(&self) -> u64 {
        self.removed_at
    }

    pub(super) fn set_secrets(
        &mut self,
        index: u64,
        secrets: &BTreeMap<String, Option<Secret>>,
    ) -> Result<Applied, Refusal> {
        self.secrets_at = index;
        for (name, secret) in secrets {
            match secret {
                Some(s) => self.secrets.insert(name.clone(), s.clone()),
                None => self.secrets.remove(name),
            };
        }
        Ok(Applied::Done)
    }

    pub(super) fn replace_secrets(
        &mut self,
        index: u64,
        seen: u64,
        secrets: &BTreeMap<String, Option<Secret>>,
        trust: &Trust,
    ) -> Result<Applied, Refusal> {
        if seen != self.secrets_at && !mutant::on(Mutant::IgnoreSeen) {
            return Err(Refusal::conflict(
                "the managers' secrets were changed by somebody else meanwhile",
                "the same command again",
            ));
        }
        self.set_secrets(index, secrets)?;
        if self.intent.trust != *trust {
            self.change(index).trust = trust.clone();
        }
        Ok(Applied::Done)
    }

    pub(super) fn join(
        &mut self,
        index: u64,
        node: &NewNode,
        secret: &Secret,
        availability: Availability,
    ) -> Result<Applied, Refusal> {
        let name = match node.role {
            Role::Worker => TOKEN_WORKER,
            Role::Manager => TOKEN_MANAGER,
        };
        let knows = self.secret(name).is_some_and(|s| same(s, &secret.0));
        if !knows && !mutant::on(Mutant::AnyToken) {
            return Err(Refusal::new(
                Code::Forbidden,
                "the token's secret is not valid any more",
                "netctl cluster token worker (on a manager)",
            ));
        }
        self.add_node(index, node, availability)
    }
}

/// Compares without telling by time where two texts differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Command, Envelope, InitCluster};

    fn newcomer(n: u8, role: Role) -> NewNode {
        NewNode {
            hostname: format!("host{n}"),
            role,
            key: vec![n; 32],
            rpc: (role == Role::Manager).then(|| format!("198.18.0.{n}:2377")),
        }
    }

    struct Log(State, u64);

    impl Log {
        fn run(&mut self, command: Command) -> Result<Applied, Refusal> {
            self.1 += 1;
            let envelope = Envelope {
                request: self.1.into(),
                time_ms: self.1,
                command,
            };
            self.0.apply(self.1, &envelope).map(|(_, applied)| applied)
        }
    }

    fn begun() -> Log {
        let mut log = Log(State::default(), 0);
        let init = InitCluster {
            cluster: "0123456789abcdef0123456789abcdef".into(),
            node: newcomer(1, Role::Manager),
            settings: model::ClusterSettings {
                default_addr_pool6: Some("fd12:3456:789a::/48".parse().unwrap()),
                ..model::ClusterSettings::default()
            },
            default_network: model::NetworkSpec::default(),
            avoid: vec![],
            secrets: BTreeMap::from([
                (TOKEN_WORKER.into(), Secret(vec![7; 20])),
                (TOKEN_MANAGER.into(), Secret(vec![8; 20])),
            ]),
        };
        log.run(Command::InitCluster(init)).unwrap();
        log
    }

    fn replace(seen: u64, name: &str, secret: u8, key: u32) -> Command {
        Command::ReplaceSecrets {
            seen,
            secrets: BTreeMap::from([(name.to_owned(), Some(Secret(vec![secret; 20])))]),
            trust: Trust {
                gossip: vec![key],
                ..Trust::default()
            },
        }
    }

    #[test]
    fn of_two_changes_from_one_state_the_first_counts() {
        let mut log = begun();
        let seen = log.0.secrets_at();
        assert_eq!(log.run(replace(seen, TOKEN_WORKER, 9, 1)), Ok(Applied::Done));
        let before = log.0.intent();
        let late = log.run(replace(seen, TOKEN_MANAGER, 9, 2)).unwrap_err();
        assert_eq!(late.code, Code::Conflict);
        assert_eq!(log.0.secret(TOKEN_MANAGER), Some(&[8; 20][..]));
        assert_eq!(log.0.intent(), before);
        let seen = log.0.secrets_at();
        assert_eq!(log.run(replace(seen, TOKEN_MANAGER, 9, 2)), Ok(Applied::Done));
        // Nodes are told by a new revision; when nothing of theirs has changed there is none.
        let now = log.0.intent();
        assert!(now.revision > before.revision && now.trust.gossip == [2]);
        let seen = log.0.secrets_at();
        log.run(replace(seen, TOKEN_WORKER, 10, 2)).unwrap();
        assert_eq!(log.0.intent().revision, now.revision);
    }

    #[test]
    fn the_log_itself_compares_tokens() {
        let mut log = begun();
        let join = |n, role, secret: &[u8]| Command::Join {
            node: newcomer(n, role),
            secret: Secret(secret.to_vec()),
            availability: Availability::Active,
        };
        assert!(matches!(log.run(join(2, Role::Worker, &[7; 20])), Ok(Applied::Node(_))));
        for (role, secret) in [
            (Role::Worker, &[8; 20][..]),
            (Role::Manager, &[7; 20]),
            (Role::Worker, &[7; 19]),
            (Role::Worker, &[]),
        ] {
            assert_eq!(log.run(join(3, role, secret)).unwrap_err().code, Code::Forbidden);
        }
        let seen = log.0.secrets_at();
        log.run(replace(seen, TOKEN_WORKER, 9, 1)).unwrap();
        // The old token, sent to a manager that had not heard of the change.
        assert_eq!(
            log.run(join(3, Role::Worker, &[7; 20])).unwrap_err().code,
            Code::Forbidden
        );
        assert!(matches!(log.run(join(3, Role::Worker, &[9; 20])), Ok(Applied::Node(_))));
        assert_eq!(log.0.intent().nodes.len(), 3);
    }

    #[test]
    fn a_removal_is_remembered() {
        let mut log = begun();
        let join = Command::Join {
            node: newcomer(2, Role::Worker),
            secret: Secret(vec![7; 20]),
            availability: Availability::Active,
        };
        let Ok(Applied::Node(node)) = log.run(join) else {
            panic!("no node")
        };
        assert_eq!(log.0.removed_at(), 0);
        log.run(Command::RemoveNode { node }).unwrap();
        assert_eq!(log.0.removed_at(), log.1);
        let again = State::decode(&log.0.encode().unwrap()).unwrap();
        assert_eq!((again.removed_at(), again.secrets_at()), (log.1, 0));
    }
}
