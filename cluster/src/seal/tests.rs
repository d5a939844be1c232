use proptest::prelude::*;

use super::*;

fn key(id: u32) -> Key {
    Key {
        id,
        secret: [u8::try_from(id).unwrap(); 32],
    }
}

fn ring(ids: &[u32]) -> Keyring {
    let keys: Vec<Key> = ids.iter().map(|i| key(*i)).collect();
    Keyring::new("c1", &keys).unwrap()
}

#[test]
fn keys_change_in_two_phases() {
    let (old, both, new) = (ring(&[1]), ring(&[1, 2]), ring(&[2, 1]));
    let by_old = old.seal([1; NONCE], b"hello").unwrap();
    let by_new = new.seal([2; NONCE], b"hello").unwrap();
    assert_eq!(both.open(&by_old).unwrap(), b"hello");
    assert_eq!(both.open(&by_new).unwrap(), b"hello");
    assert_eq!(new.open(&by_old).unwrap(), b"hello");
    assert_eq!(old.open(&by_new), Err(SealError::UnknownKey(2)));
}

#[test]
fn another_cluster_with_the_same_key_is_refused() {
    let packet = ring(&[1]).seal([0; NONCE], b"hello").unwrap();
    let other = Keyring::new("c2", &[key(1)]).unwrap();
    assert_eq!(other.open(&packet), Err(SealError::Forged));
}

#[test]
fn a_ring_has_one_to_three_keys() {
    assert_eq!(Keyring::new("c", &[]).unwrap_err(), SealError::Keys(0));
    let four: Vec<Key> = (1..=4).map(key).collect();
    assert_eq!(Keyring::new("c", &four).unwrap_err(), SealError::Keys(4));
}

#[test]
fn lengths_are_bounded() {
    let r = ring(&[1]);
    assert_eq!(r.seal([0; NONCE], &[0; MAX_PLAIN]).unwrap().len(), MAX_PACKET);
    assert!(r.seal([0; NONCE], &[0; MAX_PLAIN + 1]).is_err());
    assert_eq!(r.open(&[1; MAX_PACKET + 1]), Err(SealError::Length(MAX_PACKET + 1)));
    assert_eq!(r.open(&[]), Err(SealError::Length(0)));
}

#[test]
fn the_secret_is_not_printed() {
    assert!(!format!("{:?} {:?}", key(7), ring(&[7])).contains("7, 7"));
}

proptest! {
    #[test]
    fn what_is_sealed_opens(plain in proptest::collection::vec(any::<u8>(), 0..=MAX_PLAIN), nonce: [u8; NONCE]) {
        let r = ring(&[1]);
        prop_assert_eq!(r.open(&r.seal(nonce, &plain).unwrap()).unwrap(), plain);
    }

    #[test]
    fn any_changed_bit_is_noticed(plain in proptest::collection::vec(any::<u8>(), 0..64), at: prop::sample::Index, bit in 0..8) {
        let r = ring(&[1]);
        let mut packet = r.seal([3; NONCE], &plain).unwrap();
        let i = at.index(packet.len());
        packet[i] ^= 1u8 << bit;
        prop_assert!(r.open(&packet).is_err());
    }

    #[test]
    fn garbage_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(ring(&[1]).open(&bytes).is_err());
    }
}
