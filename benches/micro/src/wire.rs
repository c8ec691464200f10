//! Wire formats.

use std::hint::black_box;

use hy2_core::fuzzing::h3;
use hy2_proto::{
    auth::{self, AuthRequest, AuthResponse, CcRx},
    frag::{Defragmenter, fragment},
    tcp::{TcpRequest, TcpResponse},
    udp::UdpMessage,
    varint,
};

use crate::{Case, payload};

/// Carries 4,000 bytes in four fragments.
const FRAGMENT: usize = 1_050;
const TARGET: &str = "example.com:443";
const ADDRESS: &str = "203.0.113.17:51820";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("varint/decode", || {
            let mut wire = Vec::new();
            for value in VALUES {
                varint::encode(value, &mut wire);
            }
            Box::new(move || {
                let mut rest = black_box(&wire[..]);
                while let Ok((value, width)) = varint::decode(rest) {
                    black_box(value);
                    rest = &rest[width..];
                }
            })
        })
        .items(4),
        Case::new("varint/encode", || {
            let mut wire = Vec::with_capacity(32);
            Box::new(move || {
                wire.clear();
                for value in black_box(VALUES) {
                    varint::encode(value, &mut wire);
                }
                black_box(&wire);
            })
        })
        .items(4),
        Case::new("tcp/request encode", || {
            let padding = payload(256);
            let mut wire = Vec::with_capacity(512);
            Box::new(move || {
                wire.clear();
                let request = TcpRequest {
                    address: black_box(TARGET),
                    padding: &padding,
                };
                request.encode(&mut wire);
                black_box(&wire);
            })
        }),
        Case::new("tcp/request decode", || {
            let mut wire = Vec::new();
            let padding = payload(256);
            let request = TcpRequest {
                address: TARGET,
                padding: &padding,
            };
            request.encode(&mut wire);
            // What follows the frame type.
            wire.drain(..2);
            Box::new(move || {
                black_box(TcpRequest::decode(black_box(&wire)).expect("valid"));
            })
        }),
        Case::new("tcp/response encode", || {
            let padding = payload(512);
            let mut wire = Vec::with_capacity(1024);
            Box::new(move || {
                wire.clear();
                TcpResponse::new(true, black_box("Connected"), &padding).encode(&mut wire);
                black_box(&wire);
            })
        }),
        Case::new("tcp/response decode", || {
            let padding = payload(512);
            let mut wire = Vec::new();
            TcpResponse::new(true, "Connected", &padding).encode(&mut wire);
            Box::new(move || {
                black_box(TcpResponse::decode(black_box(&wire)).expect("valid"));
            })
        }),
        Case::new("auth/headers of the request", || {
            let headers = headers();
            Box::new(move || {
                let get = |name: &str| std::str::from_utf8(headers.get(name)?.as_bytes()).ok();
                black_box(AuthRequest::from_headers(get));
            })
        }),
        // Once per connection: a name, a value and their place for each of eight fields.
        Case::new("auth/section to request", || {
            let section = section();
            Box::new(move || {
                let (request, ..) = h3::request(black_box(&section)).expect("valid");
                black_box(h3::auth_request(&request).expect("an authentication"));
            })
        })
        .allocates(26.0),
        Case::new("auth/headers of the answer", || {
            let padding = String::from_utf8(vec![b'x'; 512]).expect("ASCII");
            let answer = AuthResponse {
                udp: true,
                cc_rx: CcRx::Auto,
            };
            Box::new(move || {
                for field in answer.headers(black_box(&padding)) {
                    black_box(field);
                }
            })
        }),
        Case::new("udp/message encode 1200", || {
            let data = payload(1200);
            let mut wire = Vec::with_capacity(1500);
            Box::new(move || {
                wire.clear();
                UdpMessage::whole(7, black_box(ADDRESS), &data).encode(&mut wire);
                black_box(&wire);
            })
        })
        .bytes(1200),
        Case::new("udp/message decode 1200", || {
            let data = payload(1200);
            let mut wire = Vec::new();
            UdpMessage::whole(7, ADDRESS, &data).encode(&mut wire);
            Box::new(move || {
                black_box(UdpMessage::decode(black_box(&wire)).expect("valid"));
            })
        })
        .bytes(1200),
        Case::new("fragments/split 4000 into 4", || {
            let data = payload(4000);
            let mut wire = Vec::with_capacity(2000);
            Box::new(move || {
                let message = UdpMessage::whole(7, black_box(ADDRESS), &data);
                for part in fragment(&message, FRAGMENT, 9).expect("fits") {
                    wire.clear();
                    part.encode(&mut wire);
                    black_box(&wire);
                }
            })
        })
        .bytes(4000)
        .items(4),
        // The slots, the address and what makes the data shared, and but in order a joined copy.
        Case::new("fragments/join in order", || join([0, 1, 2, 3]))
            .bytes(4000)
            .items(4)
            .allocates(3.0),
        Case::new("fragments/join in reverse", || join([3, 2, 1, 0]))
            .bytes(4000)
            .items(4)
            .allocates(4.0),
        Case::new("fragments/join shuffled", || join([2, 0, 3, 1]))
            .bytes(4000)
            .items(4)
            .allocates(4.0),
        Case::new("fragments/join with duplicates", || {
            join([0, 0, 1, 1, 2, 2, 3, 3])
        })
        .bytes(4000)
        .items(8)
        .allocates(3.0),
        Case::new("fragments/join in each of 24 orders", || {
            let mut joined: Vec<_> = orders().into_iter().map(join).collect();
            Box::new(move || joined.iter_mut().for_each(|join| join()))
        })
        .bytes(24 * 4000)
        .items(24 * 4)
        .allocates(23.0 * 4.0 + 3.0),
    ]
}

/// All orders of four.
fn orders() -> Vec<[usize; 4]> {
    let mut orders = Vec::new();
    for code in 0..256_usize {
        let order = [code >> 6, code >> 4 & 3, code >> 2 & 3, code & 3];
        if (0..4).all(|part| order.contains(&part)) {
            orders.push(order);
        }
    }
    orders
}

const VALUES: [u64; 4] = [37, 15_293, 494_878_333, 151_288_809_941_952_652];

fn join<const N: usize>(order: [usize; N]) -> Box<dyn FnMut()> {
    // Two packet numbers in turn, as of a sender that counts.
    let encoded = |packet: u16| {
        let data = payload(4000);
        let message = UdpMessage::whole(7, ADDRESS, &data);
        let parts = fragment(&message, FRAGMENT, packet).expect("fits");
        let parts = parts.map(|part| {
            let mut wire = Vec::new();
            part.encode(&mut wire);
            wire
        });
        parts.collect::<Vec<_>>()
    };
    let messages = [encoded(1), encoded(2)];
    assert_eq!(messages[0].len(), 4);
    let mut joining = Defragmenter::new();
    let mut turn = 0;
    Box::new(move || {
        turn ^= 1;
        let mut whole = false;
        for at in order {
            let part = UdpMessage::decode(&messages[turn][at]).expect("valid");
            whole |= black_box(joining.push(&part)).is_some();
        }
        assert!(whole, "joined");
    })
}

fn fields() -> [(&'static str, String); 8] {
    [
        (":method", auth::METHOD.into()),
        (":scheme", auth::SCHEME.into()),
        (":authority", auth::AUTHORITY.into()),
        (":path", auth::PATH.into()),
        (
            auth::HEADER_AUTH,
            "a credential of forty-three characters....".into(),
        ),
        (auth::HEADER_CC_RX, "12500000".into()),
        (auth::HEADER_PADDING, "x".repeat(512)),
        ("user-agent", "none".into()),
    ]
}

fn headers() -> http::HeaderMap {
    let fields = fields()
        .into_iter()
        .filter(|(name, _)| !name.starts_with(':'));
    fields
        .map(|(name, value)| {
            let name = http::HeaderName::from_static(name);
            (name, value.parse().expect("a value"))
        })
        .collect()
}

fn section() -> Vec<u8> {
    let fields = fields();
    h3::encode_fields(fields.iter().map(|(name, value)| (*name, value.as_bytes())))
}
