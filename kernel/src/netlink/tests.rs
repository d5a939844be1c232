use super::*;
use nix::errno::Errno;

#[test]
fn attributes_survive_the_round_trip_and_end_at_garbage() {
    let mut w = Writer::default();
    w.string(1, "netd").be32(2, 7).nest(3, |w| {
        w.bytes(9, &[1, 2, 3]);
    });
    let a = Attrs(&w.0);
    assert_eq!(a.string(1).as_deref(), Some("netd"));
    assert_eq!(a.be32(2), Some(7));
    assert_eq!(a.get(3).map(Attrs).and_then(|n| n.get(9)), Some(&[1u8, 2, 3][..]));
    assert_eq!(Attrs(&[255, 255, 1, 0, 9]).count(), 0, "longer than the buffer");
    assert_eq!(Attrs(&[3, 0, 1, 0]).count(), 0, "shorter than its header");
    assert_eq!(Attrs(&[0, 0, 0, 0, 0]).count(), 0, "length zero does not loop");
}

#[test]
fn the_kernels_words_are_read_behind_the_quoted_request() {
    let mut body = (-17i32).to_ne_bytes().to_vec();
    let mut quoted = [0u8; HEADER + 8];
    quoted[..4].copy_from_slice(&((HEADER + 8) as u32).to_ne_bytes());
    let mut w = Writer::default();
    w.string(1, "Nexthop has invalid gateway");
    let capped = [&body[..], &quoted[..HEADER], &w.0].concat();
    body.extend([&quoted[..], &w.0].concat());
    let tlvs = netlink_packet_core::NLM_F_ACK_TLVS;
    for (flags, body) in [(tlvs, &body), (tlvs | netlink_packet_core::NLM_F_CAPPED, &capped)] {
        let refusal = error::parse_ack(flags, body).unwrap().unwrap_err();
        assert_eq!(refusal.errno, Errno::EEXIST);
        assert_eq!(refusal.to_string(), "File exists (EEXIST): Nexthop has invalid gateway");
    }
    assert_eq!(error::parse_ack(0, &0i32.to_ne_bytes()).unwrap(), Ok(()));
    assert!(error::parse_ack(0, &[1]).is_err());
}

#[test]
fn a_message_that_lies_about_its_length_is_no_message() {
    assert!(Header::split(&[]).is_none());
    assert!(Header::split(&[15, 0, 0, 0]).is_none());
    let mut m = vec![0u8; 20];
    m[..4].copy_from_slice(&24u32.to_ne_bytes());
    assert!(Header::split(&m).is_none(), "longer than the datagram");
    m[..4].copy_from_slice(&8u32.to_ne_bytes());
    assert!(Header::split(&m).is_none(), "shorter than a header");
}
