//! The rows of a metrics file, ours and the reference's.

use serde_json::Value;

/// What a metrics file says of one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// Of the step, before its update.
    pub loss: f64,
    /// l2 norm of the whole gradient, before clipping; the reference does not say.
    pub grad_norm: Option<f64>,
    /// Seconds of forward, backward and optimizer.
    pub seconds: f64,
    /// The same and what is between two steps.
    pub whole_seconds: f64,
    /// Tokens with padding.
    pub padded: f64,
    /// Tokens of data; the reference does not say.
    pub tokens: Option<f64>,
    /// The largest resident memory that any rank has had so far, in bytes; the reference does not say.
    pub peak: Option<u64>,
    /// What tensors had at most on the GPU in this step, in bytes.
    pub device_peak: Option<u64>,
    /// What libtorch's allocator had taken from the GPU at most in this step, in bytes.
    pub device_reserved_peak: Option<u64>,
}

/// The steps in the text of a metrics file; other lines, as of evaluations, are left out.
pub fn steps(metrics: &str) -> Vec<Step> {
    let step = |line: &str| {
        let row: Value = serde_json::from_str(line).ok()?;
        let device = &row["device_memory"];
        Some(Step {
            loss: row["loss"].as_f64()?,
            grad_norm: row["grad_norm"].as_f64(),
            seconds: row["step_time"].as_f64()?,
            whole_seconds: row["iter_time"].as_f64()?,
            padded: row["seqlen"].as_f64()?,
            tokens: row["num_tokens"].as_f64(),
            peak: row["peak_memory_bytes"].as_u64(),
            device_peak: device["allocated_peak"].as_u64(),
            device_reserved_peak: device["reserved_peak"].as_u64(),
        })
    };
    metrics.lines().filter_map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_both_systems_are_read() {
        let text = "\
{\"iter\":1,\"loss\":3.5,\"iter_time\":2.0,\"step_time\":1.5,\"seqlen\":512.0,\"num_tokens\":500,\"device_memory\":{\"allocated_peak\":7,\"reserved_peak\":9}}
{\"iter\":1,\"loss/eval\":3.0}
{\"epoch\": 0, \"iter\": 2, \"loss\": 3.25, \"iter_time\": 1.0, \"step_time\": 0.5, \"seqlen\": 512.0}
";
        let steps = steps(text);
        assert_eq!(steps.len(), 2);
        assert_eq!((steps[0].loss, steps[0].tokens), (3.5, Some(500.0)));
        assert_eq!((steps[0].device_peak, steps[0].device_reserved_peak), (Some(7), Some(9)));
        assert_eq!((steps[1].seconds, steps[1].tokens), (0.5, None));
    }
}
