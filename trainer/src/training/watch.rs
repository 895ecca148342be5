//! Who looks on while a run trains. The loop tells a [`Watcher`] what happens; of terminals it knows nothing.

use super::report::{Epoch, Stretch};
use crate::progress::Progress;

/// What is about to be trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Steps of the whole run.
    pub steps: u64,
    /// Steps of an epoch, at least 1.
    pub steps_per_epoch: u64,
    /// Steps that are done already, where a run is resumed.
    pub done: u64,
    /// Names of the loss's terms.
    pub terms: Vec<&'static str>,
}

/// Is told what a run does. It changes nothing about the numbers; it may raise the flag that stops the run. It is dropped when
/// the loop ends, however that happens.
pub trait Watcher {
    /// A step is done; `training` is what came since the last epoch's end.
    fn step(&mut self, training: &Stretch);

    /// An epoch's steps are done, and its network is being judged.
    fn validation(&mut self, training: &Stretch);

    /// It is judged; `line` goes to `metrics.jsonl`.
    fn epoch(&mut self, line: &Epoch);

    /// The run ends here, complete or stopped, without an error.
    fn end(&mut self);
}

/// A watcher for each time that the loop begins.
pub type Watch<'a> = dyn Fn(Plan) -> Box<dyn Watcher + 'a> + 'a;

/// A line an epoch, with a bar below it on a terminal.
pub fn plain<'a>(plan: Plan) -> Box<dyn Watcher + 'a> {
    Box::new(Plain { steps: plan.steps, progress: Progress::new("training", plan.steps) })
}

struct Plain {
    steps: u64,
    progress: Progress,
}

impl Watcher for Plain {
    fn step(&mut self, training: &Stretch) {
        self.progress.set(training.step);
    }

    fn validation(&mut self, _training: &Stretch) {}

    fn epoch(&mut self, line: &Epoch) {
        self.progress.say(&line.describe(self.steps));
    }

    fn end(&mut self) {
        self.progress.finish();
    }
}
