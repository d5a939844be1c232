use proptest::prelude::*;

use super::*;

/// Octets as a ZooKeeper 3.8 client sends them (layout of org.apache.zookeeper.proto).
#[test]
fn messages_have_the_layout_of_the_protocol() {
    let first = jute::connect(10_000);
    assert_eq!(first.len(), 4 + 45);
    assert_eq!(first[..4], [0, 0, 0, 45]);
    assert_eq!(first[16..20], 10_000i32.to_be_bytes());
    assert_eq!(first[28..32], [0, 0, 0, 16], "the password's length");
    let create = Out::request(1, jute::CREATE)
        .bytes(b"/a")
        .bytes(b"x")
        .open_to_all()
        .int(jute::EPHEMERAL)
        .frame();
    let mut want = vec![
        0, 0, 0, 55, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, b'/', b'a', 0, 0, 0, 1, b'x',
    ];
    want.extend([0, 0, 0, 1, 0, 0, 0, 31, 0, 0, 0, 5]);
    want.extend(b"world");
    want.extend([0, 0, 0, 6]);
    want.extend(b"anyone");
    want.extend([0, 0, 0, 1]);
    want[3] = u8::try_from(want.len() - 4).unwrap();
    assert_eq!(create, want);
}

#[test]
fn answers_are_read_and_short_ones_refused() {
    let answer = Out::default().int(0).int(40_000).long(7).bytes(&[1; 16]).frame();
    assert_eq!(granted(&answer[4..]), Some(Duration::from_secs(40)));
    assert_eq!(granted(&answer[4..answer.len() - 1]), None);
    let list = Out::default().int(2).bytes(b"a:1").bytes(b"b:2").frame();
    assert_eq!(In(&list[4..]).strings(10), Some(vec!["a:1".into(), "b:2".into()]));
    assert_eq!(In(&list[4..]).strings(1), Some(vec!["a:1".into()]));
    // A length that promises more than there is, and a negative one.
    assert_eq!(In(&[0x7f, 0xff, 0xff, 0xff, 0]).bytes(), None);
    assert_eq!(In(&[0xff, 0xff, 0xff, 0xfe]).bytes(), None);
    assert_eq!(In(&[0xff, 0xff, 0xff, 0xff]).bytes(), Some(&[][..]));
}

proptest! {
    #[test]
    fn garbage_is_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = granted(&bytes);
        let _ = In(&bytes).strings(4);
    }
}
