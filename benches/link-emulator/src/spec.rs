//! Links written as text, for command lines and reports.

use std::{str::FromStr, time::Duration};

use anyhow::{Context, bail, ensure};

use crate::model::{LinkConfig, Loss, Reorder};

/// Reads `key=value` pairs with commas between them; what is left out does not impair the link.
///
/// | key | value | meaning |
/// |---|---|---|
/// | `rate` | `100` | Mbit/s of UDP payload |
/// | `delay` | `150` | one-way delay in milliseconds |
/// | `buffer` | `50` | milliseconds of the rate that may queue (default 50) |
/// | `loss` | `0.3` | share of the datagrams, independently |
/// | `bursts` | `0.01:0.1:0:1` | Gilbert-Elliott: to bad, to good, loss when good, loss when bad |
/// | `reorder` | `0.3:4` | share of the datagrams, and by how many milliseconds they are late |
/// | `duplicate` | `0.01` | share of the datagrams that arrives twice |
/// | `mtu` | `1452` | largest UDP payload in bytes |
///
/// # Errors
///
/// Names the key that is unknown or whose value is out of range.
impl FromStr for LinkConfig {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut link = Self::default();
        let mut buffer = Duration::from_millis(50);
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .with_context(|| format!("{pair}: expected key=value"))?;
            let result = match key {
                "rate" => positive(value).map(|mbps| link.rate_bps = Some((mbps * 1e6) as u64)),
                "delay" => millis(value).map(|delay| link.delay = delay),
                "buffer" => millis(value).map(|span| buffer = span),
                "loss" => share(value).map(|p| link.loss = Loss::Bernoulli(p)),
                "bursts" => bursts(value).map(|loss| link.loss = loss),
                "reorder" => reorder(value).map(|reorder| link.reorder = reorder),
                "duplicate" => share(value).map(|p| link.duplicate = p),
                "mtu" => value.parse().map(|mtu| link.mtu = mtu).map_err(Into::into),
                _ => bail!("{key}: unknown property of a link"),
            };
            result.with_context(|| format!("{key}={value}"))?;
        }
        if let Some(rate) = link.rate_bps {
            link.buffer_bytes = (rate as f64 / 8.0 * buffer.as_secs_f64()) as u64;
        }
        Ok(link)
    }
}

fn positive(text: &str) -> anyhow::Result<f64> {
    let number: f64 = text.parse()?;
    ensure!(
        number > 0.0 && number.is_finite(),
        "must be a number above 0"
    );
    Ok(number)
}

fn share(text: &str) -> anyhow::Result<f64> {
    let number: f64 = text.parse()?;
    ensure!((0.0..=1.0).contains(&number), "must be between 0 and 1");
    Ok(number)
}

fn millis(text: &str) -> anyhow::Result<Duration> {
    let number: f64 = text.parse()?;
    ensure!(
        (0.0..=600_000.0).contains(&number),
        "must be between 0 and 600000 ms"
    );
    Ok(Duration::from_secs_f64(number / 1e3))
}

fn bursts(text: &str) -> anyhow::Result<Loss> {
    let shares: Vec<f64> = text.split(':').map(share).collect::<Result<_, _>>()?;
    let [to_bad, to_good, good_loss, bad_loss] = shares[..] else {
        bail!("expected four numbers with colons between them");
    };
    Ok(Loss::GilbertElliott {
        to_bad,
        to_good,
        good_loss,
        bad_loss,
    })
}

fn reorder(text: &str) -> anyhow::Result<Reorder> {
    let (probability, extra) = text.split_once(':').context("expected share:ms")?;
    Ok(Reorder {
        probability: share(probability)?,
        extra_delay: millis(extra)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_property_is_read() {
        let link: LinkConfig =
            "rate=100,delay=150,buffer=20,loss=0.3,reorder=0.5:4,duplicate=0.1,mtu=1400"
                .parse()
                .expect("valid");
        let expected = LinkConfig {
            rate_bps: Some(100_000_000),
            delay: Duration::from_millis(150),
            buffer_bytes: 250_000,
            loss: Loss::Bernoulli(0.3),
            reorder: Reorder {
                probability: 0.5,
                extra_delay: Duration::from_millis(4),
            },
            duplicate: 0.1,
            mtu: 1400,
        };
        assert_eq!(link, expected);
        let bursts: LinkConfig = "bursts=0.01:0.1:0:1".parse().expect("valid");
        assert_eq!(
            bursts.loss,
            Loss::GilbertElliott {
                to_bad: 0.01,
                to_good: 0.1,
                good_loss: 0.0,
                bad_loss: 1.0
            }
        );
        assert_eq!(
            "".parse::<LinkConfig>().expect("valid"),
            LinkConfig::default()
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for text in [
            "rate",
            "rate=0",
            "rate=fast",
            "loss=1.1",
            "loss=-0.1",
            "delay=-1",
            "bursts=0.1:0.1",
            "reorder=0.1",
            "mtu=-1",
            "jitter=4",
        ] {
            let error = text.parse::<LinkConfig>().expect_err(text);
            let key = text.split('=').next().unwrap_or_default();
            assert!(format!("{error:#}").contains(key), "{error:#}");
        }
    }
}
