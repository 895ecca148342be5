//! The learning rate: linear warm-up, then half a cosine down to zero.

use std::f64::consts::PI;

/// The rate for step `step` (from 0) of `steps`: rises over the first `warm_up` steps, reaches `peak`, and ends near
/// zero.
pub fn learning_rate(peak: f64, step: u64, warm_up: u64, steps: u64) -> f64 {
    if step < warm_up {
        return peak * (step + 1) as f64 / warm_up as f64;
    }
    let progress = (step - warm_up) as f64 / steps.saturating_sub(warm_up).max(1) as f64;
    peak * 0.5 * (1.0 + (PI * progress.min(1.0)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_to_the_peak_and_falls_to_zero() {
        let rates: Vec<f64> = (0..100).map(|step| learning_rate(2.0, step, 10, 100)).collect();
        assert!(
            (rates[0] - 0.2).abs() < 1e-12
                && (rates[9] - 2.0).abs() < 1e-12
                && (rates[10] - 2.0).abs() < 1e-12
        );
        assert!(rates[..10].windows(2).all(|pair| pair[0] < pair[1]));
        assert!(rates[10..].windows(2).all(|pair| pair[0] > pair[1]));
        assert!((rates[55] - 1.0).abs() < 1e-12 && rates[99] < 0.002);
    }

    #[test]
    fn no_warm_up_and_no_steps_are_no_division_by_zero() {
        assert!((learning_rate(1.0, 0, 0, 0) - 1.0).abs() < 1e-12);
        assert!(learning_rate(1.0, 7, 0, 0).abs() < 1e-12);
    }
}
