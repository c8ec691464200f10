//! Messages of the speed test.
//!
//! Planted bug: a message over its limit was accepted.

use hy2_proto::speedtest::{
    MAX_MESSAGE_LEN, SpeedtestRequest, SpeedtestResponse, SpeedtestSummary,
};

use crate::check_prefixes;

/// Decodes the input as each of the three messages.
pub fn target(data: &[u8]) {
    let request = SpeedtestRequest::decode(data);
    check_prefixes(
        data,
        request.map(|(_, used)| used),
        SpeedtestRequest::decode,
    );
    if let Ok((request, used)) = request {
        assert_eq!(used, SpeedtestRequest::LEN);
        let mut wire = Vec::new();
        request.encode(&mut wire);
        assert_eq!(wire, data[..used]);
    }

    let response = SpeedtestResponse::decode(data);
    check_prefixes(
        data,
        response.map(|(_, used)| used),
        SpeedtestResponse::decode,
    );
    if let Ok((response, used)) = response {
        assert!(response.message.len() <= MAX_MESSAGE_LEN);
        assert_eq!(response.ok, data[0] == 0);
        let mut wire = Vec::new();
        response.encode(&mut wire);
        assert_eq!(wire[1..], data[1..used]);
        assert_eq!(SpeedtestResponse::decode(&wire), Ok((response, used)));
    }
    if let Ok(message) = std::str::from_utf8(data) {
        let mut wire = Vec::new();
        SpeedtestResponse { ok: true, message }.encode(&mut wire);
        let (response, used) = SpeedtestResponse::decode(&wire).expect("what was encoded");
        assert_eq!(used, wire.len());
        assert!(message.starts_with(response.message));
        assert!(response.message.len() == message.len() || message.len() > MAX_MESSAGE_LEN);
    }

    let summary = SpeedtestSummary::decode(data);
    check_prefixes(
        data,
        summary.map(|(_, used)| used),
        SpeedtestSummary::decode,
    );
    match summary {
        Ok((summary, used)) => {
            let mut wire = Vec::new();
            summary.encode(&mut wire);
            assert_eq!(wire, data[..used]);
            let time = std::time::Duration::from_millis(summary.millis.into());
            assert_eq!(SpeedtestSummary::new(time, summary.bytes.into()), summary);
        }
        Err(error) => assert!(error.is_incomplete() && data.len() < SpeedtestSummary::LEN),
    }
}
