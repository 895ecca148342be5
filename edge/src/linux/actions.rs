//! What the device does with an outcome, beside printing it: a program that is given it, an address that it is posted to, a
//! lamp.
//!
//! ```text
//! outcome ─► queue ─► exec: one program at a time, 10 s each
//!        ├─► queue ─► webhook: one POST at a time, few attempts
//!        └─► lamps: lit for a second, the newest wins
//! ```
//!
//! Whoever calls [`Actions::act`] has the outcome on the disk already, and calls once: an action happens at most once, or not at
//! all where the power goes before. Each kind has a thread and a bounded queue of its own, so that a program or host that hangs
//! delays neither replies nor the others. Where one is behind, the oldest outcomes are dropped for new ones, and it is said how many.
//!
//! A device with an outbox hands over one outcome at a time ([`Actions::is_busy`]); the rest wait there.
//!
//! What is deliberately absent: a shell, and more than a few attempts at a host that is away. Whoever must not miss an outcome has
//! the answers of the server itself.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use glimpse_protocol::device;
use thiserror::Error;

use super::credentials::CredentialsError;
use super::gpio::GpioError;
use super::host::{self, NoRandomness};
use super::output::{self, Outcome};
use crate::backoff::Jitter;
use crate::pins::Sign;
use exec::{Exec, HookError};
use lamps::Lamps;
use queue::{Queue, Told};
use webhook::{Poster, Webhook};

mod exec;
mod lamps;
mod queue;
mod webhook;

pub use exec::check as check_program;

/// How long an ending program waits for what is in hand.
const GRACE: Duration = Duration::from_secs(5);

/// Why a device cannot do what it is to do with an answer.
#[derive(Debug, Error)]
pub enum ActionError {
    /// The program.
    #[error("exec")]
    Exec(#[from] HookError),
    /// The secret of the webhook, or the authority of its host.
    #[error("webhook")]
    Webhook(#[from] CredentialsError),
    /// A lamp.
    #[error("led")]
    Led(#[from] GpioError),
    /// The system.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The system.
    #[error("cannot start the thread of actions")]
    Thread(#[source] io::Error),
}

/// Whether the secret of a webhook, and the authority of its host, can be used; nothing is sent.
///
/// # Errors
/// As [`Actions::start`].
pub fn check_webhook(webhook: &device::Webhook) -> Result<(), CredentialsError> {
    Poster::new(webhook).map(|_| ())
}

/// What becomes of an outcome.
#[derive(Debug, Default)]
pub struct Actions {
    workers: Vec<Worker>,
    lamps: Option<Lamps>,
}

#[derive(Debug)]
struct Worker {
    /// What is done, for messages.
    name: &'static str,
    queue: Queue,
    thread: JoinHandle<()>,
}

impl Actions {
    /// Starts what is needed for `settings`; nothing where they say nothing.
    ///
    /// # Errors
    /// A program that cannot be run, a secret that cannot be used, a line that cannot be had.
    pub fn start(settings: &device::Actions, jitter: Jitter) -> Result<Self, ActionError> {
        let mut actions = Self::default();
        if let Some(program) = &settings.exec {
            let hook = Exec::new(program)?;
            actions.spawn("exec", move |queue| hook.run(queue))?;
        }
        if let Some(webhook) = &settings.webhook {
            let poster = Poster::new(webhook)?;
            let mut webhook = Webhook::new(poster, jitter);
            actions.spawn("webhook", move |queue| webhook.run(queue))?;
        }
        if settings.led.is_some() || settings.led_unknown.is_some() {
            let lamps = Lamps::of_lines(settings.led.as_ref(), settings.led_unknown.as_ref())?;
            actions.lamps = Some(lamps.map_err(ActionError::Thread)?);
        }
        Ok(actions)
    }

    fn spawn(
        &mut self,
        name: &'static str,
        run: impl FnOnce(&Queue) + Send + 'static,
    ) -> Result<(), ActionError> {
        let queue = Queue::default();
        let theirs = queue.clone();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&theirs))
            .map_err(ActionError::Thread)?;
        self.workers.push(Worker { name, queue, thread });
        Ok(())
    }

    /// Acts upon an outcome. Does not wait.
    pub fn act(&self, outcome: &Outcome) {
        if let (Some(lamps), Some(sign)) = (&self.lamps, sign(outcome)) {
            lamps.show(sign);
        }
        if self.workers.is_empty() {
            return;
        }
        let mut json = Vec::new();
        // Writing to memory does not fail.
        if output::write_json(&mut json, outcome).is_err() {
            return;
        }
        // A photo that never became a query has no id; a POST that is repeated must be known as such nevertheless.
        let key =
            outcome.id.map_or_else(host::query_id, Ok).map_or_else(|_| String::new(), |id| id.to_string());
        let told = Arc::new(Told { key, json });
        for worker in &self.workers {
            worker.queue.push(Arc::clone(&told));
        }
    }

    /// Calls `told` each time that one of them has nothing to do any more.
    pub fn on_idle(&self, told: impl Fn() + Clone + Send + Sync + 'static) {
        for worker in &self.workers {
            worker.queue.on_idle(Box::new(told.clone()));
        }
    }

    /// Whether an outcome is still acted upon: one more would wait behind it, and would be lost where the power goes.
    pub fn is_busy(&self) -> bool {
        self.workers.iter().any(|worker| worker.queue.is_busy())
    }

    /// Whether so much waits that who can wait should.
    pub fn is_behind(&self) -> bool {
        self.workers.iter().any(|worker| worker.queue.is_behind())
    }

    /// Ends. What waits is done still: all of it where `is_patient`, until `is_stopped`; else for some seconds. Says what was
    /// not done.
    pub fn close(self, is_patient: bool, is_stopped: impl Fn() -> bool) {
        for worker in &self.workers {
            worker.queue.close();
        }
        let mut give_up: Option<Instant> = None;
        for Worker { name, queue, thread } in self.workers {
            loop {
                if !is_patient || is_stopped() {
                    give_up.get_or_insert_with(|| Instant::now() + GRACE);
                }
                let left = give_up.map_or(GRACE, |at| at.saturating_duration_since(Instant::now()));
                if queue.wait_done(left.min(Duration::from_millis(100))) {
                    let _ = thread.join();
                    break;
                }
                if left.is_zero() {
                    let left = queue.abandon();
                    tracing::warn!(outcomes = left, "{name}: not done with these when the program ended");
                    // Kills its program, and does not wait for a host.
                    queue.wait_done(Duration::from_millis(500));
                    break;
                }
            }
        }
        if let Some(lamps) = self.lamps {
            lamps.close();
        }
    }
}

/// What a lamp shows; nothing for a photo without an answer.
fn sign(outcome: &Outcome) -> Option<Sign> {
    let answered = outcome.result.as_ref().ok()?;
    Some(if answered.unknown { Sign::Unknown } else { Sign::Match })
}
