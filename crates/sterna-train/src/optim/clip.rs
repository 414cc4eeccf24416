//! Clipping the gradient by its global norm.

/// What to multiply every gradient by so that its norm is at most `max_norm`; 1 when it is already, or when `max_norm`
/// is 0 (off).
///
/// Source: DeepSpeed `stage3.py`, `unscale_and_clip_grads`: `1 / max(1, (norm + 1e-6) / max_norm)`.
pub fn clip_scale(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 { 1.0 / ((norm + 1e-6) / max_norm).max(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_gradients_shrink() {
        assert!((clip_scale(0.5, 1.0) - 1.0).abs() < f64::EPSILON);
        assert!((clip_scale(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert!((clip_scale(4.0, 0.0) - 1.0).abs() < f64::EPSILON);
    }
}
