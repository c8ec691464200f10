//! The transport settings that belong to our controllers.

use quinn::TransportConfig;

/// Later packets after whose arrival a packet counts as lost.
const OVERTAKEN: u32 = 160;

/// Sets how long a packet may be overtaken before it counts as lost.
///
/// RFC 9002 §6.1.1 recommends to declare a packet lost once three later ones arrived. On paths with
/// parallel links a third of the packets can come a few milliseconds late, which at 100 Mbit/s means
/// dozens of later packets; each false loss costs a retransmission and, under Brutal, raises the rate.
/// With 160 packets that is 10 ms at 150 Mbit/s, bursts included, and 4 ms at 400; below, time decides
/// (9/8 of a round trip, RFC 9002 §6.1.2). More would cost on long paths, where an eighth of a round
/// trip is long: each attempt at a lost segment takes that much more, and what is behind it waits in
/// memory. Measured on the reference: 30 % of packets late by 4 ms took 200 to 121 Mbit/s with 3.
pub fn tune(config: &mut TransportConfig) -> &mut TransportConfig {
    config.packet_threshold(OVERTAKEN).time_threshold(9.0 / 8.0)
}
