//! One configuration, what its runs measured, and what follows from that.

use serde_json::{Value, json};
use sterna_bench::figures::shortest_and_median;
use sterna_bench::metrics::Step;
use sterna_bench::process::{End, Watched};

use super::options::{Input, Options};
use super::policy::Policy;

/// Which program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum System {
    Sterna,
    Reference,
}

/// One row of the table: a configuration.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Case {
    pub(super) system: System,
    pub(super) input: Input,
    pub(super) length: usize,
    pub(super) ranks: usize,
    /// The reference has none.
    pub(super) policy: Option<Policy>,
    /// One a round.
    pub(super) runs: Vec<Run>,
    /// What `sterna check` says that a rank needs.
    pub(super) predicted: Option<Predicted>,
}

/// One run of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Run {
    /// As one can type it in the workspace root.
    pub(super) command: String,
    pub(super) watched: Watched,
    pub(super) steps: Vec<Step>,
    /// Processes that wanted to run in the minute before.
    pub(super) load_before: Option<f64>,
}

/// Bytes of one rank.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Predicted {
    /// Kind and bytes, as in `sterna check --format json`.
    pub(super) kinds: Vec<(String, u64)>,
}

impl Predicted {
    pub(super) fn bytes(&self) -> u64 {
        self.kinds.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Reads the JSON of `sterna check`: what is in memory, of the device and of the host, which on a CPU is one.
    ///
    /// Where the run decides how many attention outputs are kept, all are counted.
    pub(super) fn from_check(check: &Value) -> Option<Self> {
        let memory = &check["memory"];
        let mut kinds = Vec::new();
        for row in memory["rows"].as_array()? {
            let bytes = row["device_bytes"].as_u64()? + row["host_bytes"].as_u64()?;
            kinds.push((row["kind"].as_str()?.to_owned(), bytes));
        }
        let automatic = memory["kept_attention_bytes"].as_u64().unwrap_or(0);
        if automatic > 0 && check["keep"]["attention_on"] != "disk" {
            let blocks = check["model"]["num_hidden_layers"].as_u64()?;
            kinds.push(("kept attention outputs, all blocks".to_owned(), automatic * blocks));
        }
        Some(Self { kinds })
    }
}

impl Case {
    /// The folder name of a run, and the label of a line without its length.
    pub(super) fn label(&self) -> String {
        match &self.policy {
            None => "reference".to_owned(),
            Some(policy) if self.ranks == 1 => policy.name.clone(),
            Some(policy) => format!("{}, sp {}", policy.name, self.ranks),
        }
    }

    /// A name for the folder of this configuration's runs.
    pub(super) fn folder(&self) -> String {
        let label = self.label().replace(", sp ", "-sp");
        format!("{}-{}-{label}", self.input.name(), self.length)
    }

    /// Whether `other` is the same at another length.
    pub(super) fn is_of_line(&self, other: &Self) -> bool {
        self.input == other.input
            && self.ranks == other.ranks
            && self.system == other.system
            && self.policy == other.policy
    }

    /// The highest peak of any rank in any run, in bytes; `None` unless all went through.
    pub(super) fn peak(&self) -> Option<u64> {
        self.done()?.iter().filter_map(Run::peak).max()
    }

    /// Fastest and median seconds of the measured steps of all runs.
    pub(super) fn step_seconds(&self) -> Option<(f64, f64)> {
        let measured = self.done()?.iter().flat_map(|run| run.steps.iter().skip(1));
        shortest_and_median(measured.map(|step| step.seconds).collect())
    }

    /// Tokens of data in a measured step, on average.
    pub(super) fn tokens(&self) -> Option<f64> {
        mean(self.done()?.iter().flat_map(|run| &run.steps).skip(1).map(|step| step.tokens))
    }

    /// The same; the reference does not count, but its data are ours.
    pub(super) fn tokens_in(&self, all: &[Self]) -> Option<f64> {
        let same = |other: &&Self| other.input == self.input && other.length == self.length;
        self.tokens().or_else(|| all.iter().filter(same).find_map(Self::tokens))
    }

    /// Tokens of the longest step with padding: what the peak depends on.
    pub(super) fn padded(&self) -> Option<f64> {
        self.done()?.iter().flat_map(|run| &run.steps).map(|step| step.padded).reduce(f64::max)
    }

    /// Losses of the first run's steps; they are the same in every run.
    pub(super) fn losses(&self) -> Option<Vec<f64>> {
        Some(self.done()?.first()?.steps.iter().map(|step| step.loss).collect())
    }

    /// Why there are no figures, in a few words.
    pub(super) fn trouble(&self) -> Option<String> {
        self.runs.iter().find_map(|run| match &run.watched.end {
            End::Done if run.steps.len() < 2 => Some("too few steps".to_owned()),
            End::Done => None,
            end => Some(end.to_string()),
        })
    }

    fn done(&self) -> Option<&[Run]> {
        (!self.runs.is_empty() && self.trouble().is_none()).then_some(&self.runs)
    }

    /// Bytes that one more token takes, between the next shorter length of the same line in `all` and this one: measured, and
    /// predicted.
    pub(super) fn growth(&self, all: &[Self]) -> (Option<f64>, Option<f64>) {
        let shorter =
            all.iter().filter(|other| self.is_of_line(other) && other.length < self.length);
        let Some(shorter) =
            shorter.filter(|other| other.peak().is_some()).max_by_key(|other| other.length)
        else {
            return (None, None);
        };
        let slope = |high: Option<u64>, low: Option<u64>| {
            let tokens = self.padded()? - shorter.padded()?;
            (tokens > 0.0).then_some(())?;
            Some((high? as f64 - low? as f64) / tokens)
        };
        let predicted = |case: &Self| case.predicted.as_ref().map(Predicted::bytes);
        (slope(self.peak(), shorter.peak()), slope(predicted(self), predicted(shorter)))
    }

    /// The reference's row for the same work.
    pub(super) fn reference<'a>(&self, all: &'a [Self]) -> Option<&'a Self> {
        all.iter().find(|other| {
            other.system == System::Reference
                && other.input == self.input
                && other.length == self.length
        })
    }

    /// Everything, for the file of results.
    pub(super) fn to_json(&self, all: &[Self]) -> Value {
        let (growth, predicted_growth) = self.growth(all);
        let seconds = self.step_seconds();
        let runs: Vec<Value> = self.runs.iter().map(Run::to_json).collect();
        let predicted = self.predicted.as_ref().map(|predicted| {
            let kinds: serde_json::Map<_, _> =
                predicted.kinds.iter().map(|(kind, bytes)| (kind.clone(), json!(bytes))).collect();
            json!({ "bytes": predicted.bytes(), "bytes_by_kind": kinds, "bytes_per_token": predicted_growth })
        });
        json!({
            "system": match self.system { System::Sterna => "sterna", System::Reference => "reference" },
            "input": self.input.name(),
            "length": self.length,
            "sp": self.ranks,
            "policy": self.policy.as_ref().map(|policy| &policy.name),
            "trouble": self.trouble(),
            "tokens": self.tokens_in(all),
            "padded_tokens": self.padded(),
            "peak_bytes": self.peak(),
            "bytes_per_token": growth,
            "predicted": predicted,
            "step_seconds_min": seconds.map(|(min, _)| min),
            "step_seconds_median": seconds.map(|(_, median)| median),
            "runs": runs,
        })
    }
}

impl Run {
    /// The highest peak of any rank, in bytes.
    ///
    /// A process that resets its high-water mark from one phase to the next says in its metrics what the kernel told it before
    /// each reset; what we see from outside may have missed a short peak.
    pub(super) fn peak(&self) -> Option<u64> {
        let seen = self.watched.peaks.iter().map(|peak| peak.resident).max();
        seen.max(self.steps.iter().filter_map(|step| step.peak).max())
    }

    fn to_json(&self) -> Value {
        let steps: Vec<Value> = self
            .steps
            .iter()
            .map(|step| {
                json!({
                    "loss": step.loss,
                    "step_time": step.seconds,
                    "iter_time": step.whole_seconds,
                    "padded_tokens": step.padded,
                    "tokens": step.tokens,
                })
            })
            .collect();
        let peaks = &self.watched.peaks;
        json!({
            "command": self.command,
            "end": self.watched.end.to_string(),
            "wall_seconds": self.watched.wall.as_secs_f64(),
            "load_before": self.load_before,
            "peak_bytes_of_ranks": peaks.iter().map(|peak| peak.resident).collect::<Vec<_>>(),
            "peak_anonymous_bytes_of_ranks": peaks.iter().map(|peak| peak.anonymous).collect::<Vec<_>>(),
            "steps": steps,
        })
    }
}

/// All configurations, those to compare next to each other: the reference's, then ours, length by length.
pub(super) fn all(options: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for &input in &options.inputs {
        for &length in &options.lengths {
            let case = |system, ranks, policy| Case {
                system,
                input,
                length,
                ranks,
                policy,
                runs: Vec::new(),
                predicted: None,
            };
            if options.reference_lengths.contains(&length) {
                cases.push(case(System::Reference, 1, None));
            }
            for &ranks in &options.ranks {
                for policy in &options.policies {
                    cases.push(case(System::Sterna, ranks, Some(policy.clone())));
                }
            }
        }
    }
    cases
}

fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let values: Vec<f64> = values.collect::<Option<_>>()?;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::super::policy;
    use super::*;
    use sterna_bench::process::Peak;

    /// A configuration with one run: a warm-up and steps of the given seconds, which takes `peak` bytes.
    pub(in super::super) fn case(
        system: System,
        length: usize,
        peak: u64,
        seconds: &[f64],
    ) -> Case {
        let is_ours = system == System::Sterna;
        let step = |seconds: f64| Step {
            loss: 2.5 + seconds / 1000.0,
            seconds,
            whole_seconds: seconds,
            padded: length as f64,
            tokens: is_ours.then_some(length as f64 - 16.0),
            peak: None,
            ..Step::default()
        };
        let peak = Peak { resident: peak, anonymous: peak / 2 };
        let watched = Watched { end: End::Done, peaks: vec![peak], wall: Duration::from_mins(1) };
        let steps = std::iter::once(99.0).chain(seconds.iter().copied()).map(step).collect();
        let command = "sterna train recipe.yaml".to_owned();
        Case {
            system,
            input: Input::Packed,
            length,
            ranks: 1,
            policy: is_ours.then(|| policy::parse("default").unwrap().remove(0)),
            runs: vec![Run { command, watched, steps, load_before: Some(0.1) }],
            predicted: is_ours
                .then(|| Predicted { kinds: vec![("weights".to_owned(), 50_000 * length as u64)] }),
        }
    }

    #[test]
    fn growth_is_between_neighbouring_lengths_of_one_line() {
        let ours = |length, peak| case(System::Sterna, length, peak, &[1.0]);
        let all = [
            ours(1000, 3_000_000),
            case(System::Reference, 1000, 9_000_000, &[1.0]),
            ours(2000, 3_100_000),
            ours(4000, 3_500_000),
        ];
        assert_eq!(all[0].growth(&all), (None, None));
        assert_eq!(all[2].growth(&all), (Some(100.0), Some(50_000.0)));
        assert_eq!(all[3].growth(&all), (Some(200.0), Some(50_000.0)));
    }

    #[test]
    fn the_warm_up_counts_for_memory_and_not_for_time() {
        let case = case(System::Sterna, 1000, 7, &[4.0, 2.0, 3.0, 9.0]);
        assert_eq!(case.step_seconds(), Some((2.0, 3.5)));
        assert_eq!(case.peak(), Some(7));
        assert_eq!(case.tokens(), Some(984.0));
    }

    #[test]
    fn a_run_that_did_not_end_well_has_no_figures() {
        let mut case = case(System::Reference, 1000, 7, &[4.0]);
        case.runs[0].watched.end = End::OutOfMemory;
        assert_eq!(case.trouble().as_deref(), Some("out of memory"));
        assert_eq!((case.peak(), case.step_seconds()), (None, None));
        case.runs[0].watched.end = End::Done;
        case.runs[0].steps.truncate(1);
        assert_eq!(case.trouble().as_deref(), Some("too few steps"));
    }

    #[test]
    fn the_prediction_adds_host_and_device_and_what_may_be_kept() {
        let check = json!({
            "model": { "num_hidden_layers": 30 },
            "memory": {
                "rows": [
                    { "kind": "weights", "device_bytes": 100, "host_bytes": 0, "disk_bytes": 0 },
                    { "kind": "kept activations", "device_bytes": 1, "host_bytes": 20, "disk_bytes": 7 },
                ],
                "kept_attention_bytes": 2,
            },
        });
        let predicted = Predicted::from_check(&check).unwrap();
        assert_eq!(predicted.bytes(), 100 + 21 + 60);
        assert_eq!(Predicted::from_check(&json!({})), None);
    }
}
