//! Where a network's time goes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use glimpse_plan::Plan;
use serde::Serialize;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::Cost;

/// Time by kind of operator, the longest first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Profile {
    /// How often the network ran.
    pub runs: usize,
    /// One run with all between the operators, in microseconds: the median.
    pub run_us: f64,
    /// Each kind of operator.
    pub operators: Vec<OperatorTime>,
}

/// One kind of operator.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OperatorTime {
    /// Its name; ours begin with `Glimpse`.
    pub operator: String,
    /// How many there are in the graph.
    pub nodes: usize,
    /// Time in all of them in one run, in microseconds: the median.
    pub time_us: f64,
    /// Its share of all operators' time, 0 to 1.
    pub share: f64,
    /// Multiply-adds in all of them; 0 where the engine does not say.
    pub multiply_adds: u64,
    /// Millions of multiply-adds a second.
    pub mega_multiply_adds_per_s: f64,
}

/// Runs a plan `runs` times, after one that is not counted.
pub(crate) fn profile(plan: &Arc<TypedRunnableModel>, input: &Tensor, runs: usize) -> TractResult<Profile> {
    let mut state = plan.spawn()?;
    let mut kinds: BTreeMap<String, (usize, u64, Vec<Duration>)> = BTreeMap::new();
    for node in plan.model().nodes() {
        let facts = plan.model().node_input_facts(node.id)?;
        let costs = node.op.cost(&facts).unwrap_or_default();
        let multiply_adds = costs.iter().filter(|(cost, _)| matches!(cost, Cost::FMA(_)));
        let multiply_adds: i64 = multiply_adds.filter_map(|(_, count)| count.to_i64().ok()).sum();
        let kind = kinds.entry(node.op.name().into_owned()).or_default();
        kind.0 += 1;
        kind.1 += multiply_adds.unsigned_abs();
    }
    let mut whole = Vec::new();
    for run in 0..=runs {
        let mut times: BTreeMap<String, Duration> = BTreeMap::new();
        let start = Instant::now();
        state.run_plan_with_eval(tvec!(input.clone().into()), |context, state, node, inputs| {
            let start = Instant::now();
            let outputs = match state {
                Some(state) => state.eval(context, &*node.op, inputs),
                None => node.op.eval(context, inputs),
            };
            *times.entry(node.op.name().into_owned()).or_default() += start.elapsed();
            outputs
        })?;
        if run > 0 {
            whole.push(start.elapsed());
            for (kind, (_, _, all)) in &mut kinds {
                all.push(times.get(kind).copied().unwrap_or_default());
            }
        }
    }
    Ok(summary(runs, whole, kinds))
}

/// The same of a plan: `run` runs it once, and tells the closure that it is given of each step before it begins, and of the end.
pub(crate) fn of_plan(plan: &Plan, runs: usize, run: impl Fn(&mut dyn FnMut(usize))) -> Profile {
    let mut kinds: BTreeMap<String, (usize, u64, Vec<Duration>)> = BTreeMap::new();
    for step in plan.steps() {
        let kind = kinds.entry(step.name().to_owned()).or_default();
        kind.0 += 1;
        kind.1 += step.multiply_adds();
    }
    let mut whole = Vec::new();
    for number in 0..=runs {
        let mut moments = Vec::with_capacity(plan.steps().len() + 1);
        let start = Instant::now();
        run(&mut |_| moments.push(Instant::now()));
        let end = start.elapsed();
        if number > 0 {
            let mut times: BTreeMap<&str, Duration> = BTreeMap::new();
            for (step, moment) in plan.steps().iter().zip(moments.windows(2)) {
                *times.entry(step.name()).or_default() += moment[1] - moment[0];
            }
            whole.push(end);
            for (kind, (_, _, all)) in &mut kinds {
                all.push(times.get(kind.as_str()).copied().unwrap_or_default());
            }
        }
    }
    summary(runs, whole, kinds)
}

fn summary(
    runs: usize,
    whole: Vec<Duration>,
    kinds: BTreeMap<String, (usize, u64, Vec<Duration>)>,
) -> Profile {
    let mut operators: Vec<OperatorTime> = kinds
        .into_iter()
        .map(|(operator, (nodes, multiply_adds, times))| {
            let time_us = median_us(times);
            let rate = if time_us > 0.0 { multiply_adds as f64 / time_us } else { 0.0 };
            OperatorTime {
                operator,
                nodes,
                time_us,
                share: 0.0,
                multiply_adds,
                mega_multiply_adds_per_s: rate,
            }
        })
        .filter(|operator| operator.time_us > 0.0)
        .collect();
    let all: f64 = operators.iter().map(|operator| operator.time_us).sum();
    operators.iter_mut().for_each(|operator| operator.share = operator.time_us / all);
    operators.sort_by(|a, b| b.time_us.total_cmp(&a.time_us));
    Profile { runs, run_us: median_us(whole), operators }
}

fn median_us(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:28} {:>5} {:>10} {:>7} {:>8} {:>8}",
            "operator", "nodes", "us", "share", "M MAC", "G MAC/s"
        )?;
        for operator in &self.operators {
            let (macs, rate) = (operator.multiply_adds as f64 / 1e6, operator.mega_multiply_adds_per_s / 1e3);
            let counted = |number: f64| if macs > 0.0 { format!("{number:.1}") } else { "-".to_owned() };
            writeln!(
                f,
                "{:28} {:5} {:10.1} {:6.1}% {:>8} {:>8}",
                operator.operator,
                operator.nodes,
                operator.time_us,
                operator.share * 100.0,
                counted(macs),
                counted(rate),
            )?;
        }
        write!(f, "one run: {:.1} us, the median of {}", self.run_us, self.runs)
    }
}
