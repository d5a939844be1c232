//! ZooKeeper's own encoding ("jute"), as far as it is needed: big endian, lengths of 32 bits. Pure.

/// `OpCode` of org.apache.zookeeper.ZooDefs.
pub(super) const CREATE: i32 = 1;
pub(super) const DELETE: i32 = 2;
pub(super) const GET_CHILDREN: i32 = 8;
pub(super) const PING: i32 = 11;
pub(super) const CLOSE: i32 = -11;
/// `xid` of a ping.
pub(super) const PING_XID: i32 = -2;
/// `xid` of an event; none is asked for, but some are sent all the same.
pub(super) const EVENT_XID: i32 = -1;
/// `KeeperException.Code`.
pub(super) const NO_NODE: i32 = -101;
pub(super) const NODE_EXISTS: i32 = -110;
/// `ZooDefs.Perms.ALL`.
const ALL: i32 = 31;
/// `CreateMode`: for ever, or as long as the session.
pub(super) const PERSISTENT: i32 = 0;
pub(super) const EPHEMERAL: i32 = 1;

/// A message that is being written.
#[derive(Debug, Default)]
pub(super) struct Out(Vec<u8>);

impl Out {
    /// A request's header.
    pub(super) fn request(xid: i32, op: i32) -> Out {
        Out::default().int(xid).int(op)
    }

    pub(super) fn int(mut self, v: i32) -> Out {
        self.0.extend(v.to_be_bytes());
        self
    }

    pub(super) fn long(mut self, v: i64) -> Out {
        self.0.extend(v.to_be_bytes());
        self
    }

    pub(super) fn flag(mut self, v: bool) -> Out {
        self.0.push(u8::from(v));
        self
    }

    /// A buffer or a string.
    pub(super) fn bytes(mut self, v: &[u8]) -> Out {
        // Bounded by the callers: paths and addresses.
        let len = i32::try_from(v.len()).unwrap_or(i32::MAX);
        self.0.extend(len.to_be_bytes());
        self.0.extend(v);
        self
    }

    /// The list of rights that lets everybody do everything: who may come near is the registry's to say.
    pub(super) fn open_to_all(self) -> Out {
        self.int(1).int(ALL).bytes(b"world").bytes(b"anyone")
    }

    /// The message with its length in front.
    pub(super) fn frame(self) -> Vec<u8> {
        let len = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        [&len.to_be_bytes(), self.0.as_slice()].concat()
    }
}

/// The first message: protocol 0, nothing seen, the session's time, a new session.
pub(super) fn connect(timeout_ms: i32) -> Vec<u8> {
    Out::default()
        .int(0)
        .long(0)
        .int(timeout_ms)
        .long(0)
        .bytes(&[0; 16])
        .flag(false)
        .frame()
}

/// A message that is being read; `None` where it is cut short.
#[derive(Debug)]
pub(super) struct In<'a>(pub(super) &'a [u8]);

impl<'a> In<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(super) fn int(&mut self) -> Option<i32> {
        self.take().map(i32::from_be_bytes)
    }

    pub(super) fn long(&mut self) -> Option<i64> {
        self.take().map(i64::from_be_bytes)
    }

    /// A buffer or a string; one that is not there (length -1) is empty.
    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = match self.int()? {
            -1 => 0,
            n => usize::try_from(n).ok()?,
        };
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    /// Strings, at most `max`.
    pub(super) fn strings(&mut self, max: usize) -> Option<Vec<String>> {
        let n = usize::try_from(self.int()?).ok()?;
        let mut out = Vec::new();
        for _ in 0..n {
            let s = String::from_utf8(self.bytes()?.to_vec()).ok()?;
            if out.len() < max {
                out.push(s);
            }
        }
        Some(out)
    }
}
