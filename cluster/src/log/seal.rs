use rand::{Rng, SeedableRng, rngs::StdRng};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// Octets of the tag behind.
const TAG: usize = 16;

/// Seals with the log key (ChaCha20-Poly1305, RFC 8439). A nonce is a random prefix and a counter: the prefix is drawn
/// anew at each start and each segment, because after a crash nobody knows which counters were used.
pub(super) struct Sealer {
    key: LessSafeKey,
    rng: StdRng,
    prefix: [u8; 8],
    counter: u32,
}

impl Sealer {
    pub(super) fn new(key: &[u8; 32], seed: [u8; 32]) -> Option<Sealer> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key).ok()?;
        let mut sealer = Sealer {
            key: LessSafeKey::new(key),
            rng: StdRng::from_seed(seed),
            prefix: [0; 8],
            counter: 0,
        };
        sealer.renew();
        Some(sealer)
    }

    /// Draws a new prefix.
    pub(super) fn renew(&mut self) {
        self.rng.fill_bytes(&mut self.prefix);
        self.counter = 0;
    }

    /// Nonce, ciphertext, tag.
    pub(super) fn seal(&mut self, aad: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        if self.counter == u32::MAX {
            self.renew();
        }
        self.counter += 1;
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&self.prefix);
        nonce[8..].copy_from_slice(&self.counter.to_le_bytes());
        let mut out = Vec::with_capacity(NONCE_LEN + plain.len() + TAG);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plain);
        let tag = self
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                out.get_mut(NONCE_LEN..)?,
            )
            .ok()?;
        out.extend_from_slice(tag.as_ref());
        Some(out)
    }

    /// `None`: sealed with another key, for another place, or changed.
    pub(super) fn open(&self, aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut body = body.to_vec();
        let len = self.key.open_in_place(nonce, Aad::from(aad), &mut body).ok()?.len();
        body.truncate(len);
        Some(body)
    }
}
