//! Attributes: type, length, value, padded to four octets (linux/netlink.h, `struct nlattr`).

/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// Type bits without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const TYPE: u16 = 0x3fff;

/// Reads attributes one by one; ends at the first that is malformed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attrs<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);
    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..)?.first_chunk()?) & TYPE;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attrs<'a> {
    /// Value of the first attribute of a type.
    pub(crate) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter().find(|(k, _)| *k == kind).map(|(_, v)| v)
    }
    /// A string, without its zero.
    pub(crate) fn string(self, kind: u16) -> Option<String> {
        self.get(kind)
            .map(|v| String::from_utf8_lossy(v.strip_suffix(&[0]).unwrap_or(v)).into_owned())
    }
    /// A number in the machine's order.
    pub(crate) fn u16(self, kind: u16) -> Option<u16> {
        self.get(kind)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
    }
    /// A number in the machine's order.
    pub(crate) fn u32(self, kind: u16) -> Option<u32> {
        self.get(kind)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
    }
    /// A number in network order, as nf_tables has them.
    pub(crate) fn be32(self, kind: u16) -> Option<u32> {
        self.get(kind)?.first_chunk().map(|b| u32::from_be_bytes(*b))
    }
}

/// Writes attributes, nested ones with a closure.
#[derive(Debug, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    /// One attribute.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        // Every value here is ours and far below 64 KiB, except lists, which the callers split.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
    /// A string with its zero.
    pub(crate) fn string(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut v = value.as_bytes().to_vec();
        v.push(0);
        self.bytes(kind, &v)
    }
    /// A number in network order.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }
    /// Attributes within an attribute.
    pub(crate) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Writer)) -> &mut Self {
        let mut w = Writer::default();
        inner(&mut w);
        self.bytes(kind | NESTED, &w.0)
    }
}
