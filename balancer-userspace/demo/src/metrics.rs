//! Reads the metrics in answers to `/metrics`.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{http_client::Request, namespace::Namespace};

/// Scrapes the balancer in `namespace` within the time `limit`, and returns the text.
///
/// # Errors
/// Fails if the balancer does not answer in time, or if its answer is not a page of metrics.
pub fn scrape_text(namespace: &Namespace, limit: Duration) -> Result<String> {
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let request = Request::new(any, SocketAddr::from(([127, 0, 0, 1], 9660))).path("/metrics");
    let request = Request { timeout: limit, ..request };
    let reply = namespace.run_in_thread(|| request.send())??;
    ensure!(reply.status == 200, "/metrics answered {}", reply.status);
    Ok(String::from_utf8(reply.body)?)
}

/// The samples of one scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Scrapes the balancer in `namespace` within the time `limit`.
    ///
    /// # Errors
    /// Fails if the balancer does not answer in time, or if the answer contains no metrics.
    pub fn scrape(namespace: &Namespace, limit: Duration) -> Result<Self> {
        Self::parse(&scrape_text(namespace, limit)?)
    }

    /// Parses the text of a scrape, and ignores comments.
    ///
    /// # Errors
    /// Fails if a line is not a sample, or if a sample occurs twice.
    pub fn parse(text: &str) -> Result<Self> {
        let mut samples = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').with_context(|| format!("not a sample: {line:?}"))?;
            let value = value.parse().with_context(|| format!("not a number: {line:?}"))?;
            ensure!(samples.insert(name.to_owned(), value).is_none(), "{name} comes twice");
        }
        Ok(Self(samples))
    }

    /// Returns all samples of counters. The name of a counter ends in `_total`, before any labels.
    pub fn counters(&self) -> impl Iterator<Item = (&str, f64)> {
        let counters =
            self.0.iter().filter(|(sample, _)| sample.split('{').next().is_some_and(|n| n.ends_with("_total")));
        counters.map(|(sample, &value)| (sample.as_str(), value))
    }

    /// The value of the sample with this name and these labels, spelled exactly in this way.
    #[must_use]
    pub fn sample(&self, sample: &str) -> Option<f64> {
        self.0.get(sample).copied()
    }

    /// The sum of the samples with the name `name` (without `balancer_`) that have all `labels`, each in the form
    /// `label="value"`.
    ///
    /// # Errors
    /// Fails if there is no such sample.
    pub fn sum(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let mut values = self.0.iter().filter_map(|(sample, &value)| {
            let rest = sample.strip_prefix("balancer_")?.strip_prefix(name)?;
            // A sample without labels has no braces.
            let has = if rest.is_empty() { rest } else { rest.strip_prefix('{')?.strip_suffix('}')? };
            labels.iter().all(|&label| has.split(',').any(|part| part == label)).then_some(value)
        });
        let first = values.next().with_context(|| format!("no balancer_{name} with {labels:?}"))?;
        Ok(values.fold(first, |sum, value| sum + value))
    }
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn when_samples_have_labels_then_they_are_summed_by_label() {
        let text = "# TYPE balancer_x counter\nbalancer_x_total{a=\"1\",b=\"1\"} 2\nbalancer_x_total{a=\"1\",b=\"2\"} 3\n\
                    balancer_x_total_more{a=\"1\"} 9\n# EOF\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.sum("x_total", &["a=\"1\""]).unwrap(), 5.0);
        assert_eq!(metrics.sum("x_total", &["b=\"2\"", "a=\"1\""]).unwrap(), 3.0);
        assert!(metrics.sum("x_total", &["b=\"3\""]).is_err());
        assert!(Metrics::parse("x{} 1\nx{} 1").is_err());
        assert!(Metrics::parse("x").is_err());
    }
}
