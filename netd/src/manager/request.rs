//! Under which id a request of the API puts its commands into the log: the same request done again, after a change of
//! leader, changes things once.

use std::cell::Cell;

tokio::task_local! {
    /// Set while a request that may be done again is carried out.
    pub static REQUEST: RequestId;
}

/// Ids for the commands of one request.
#[derive(Debug)]
pub struct RequestId {
    first: u128,
    used: Cell<u128>,
}

impl RequestId {
    /// From the request's own id.
    pub fn new(first: u128) -> RequestId {
        RequestId {
            first,
            used: Cell::new(0),
        }
    }
}

/// The id of the next command of the request that is carried out in this task; none: it is nobody's.
pub(super) fn next() -> Option<u128> {
    REQUEST
        .try_with(|r| {
            let n = r.used.get();
            r.used.set(n.wrapping_add(1));
            r.first.wrapping_add(n)
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_done_again_has_the_same_ids() {
        assert_eq!(next(), None);
        for _ in 0..2 {
            let ids = REQUEST
                .scope(RequestId::new(u128::MAX), async { (next(), next()) })
                .await;
            assert_eq!(ids, (Some(u128::MAX), Some(0)));
        }
    }
}
