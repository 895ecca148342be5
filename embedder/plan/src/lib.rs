//! A network for one size of image, as a list of steps with their weights packed: what the embedder makes of an ONNX file once, and
//! then reads again in milliseconds.
//!
//! There is no engine behind it and no operating system (`target_os = "none"` makes it `no_std`), so that a microcontroller runs
//! the same steps over the same kernels. In reading order:
//!
//! - `shape`: how large values are ([`Shape`]).
//! - `kernel`: the convolutions, any of [`glimpse_kernels`] ([`Kernel`]).
//! - `step`: one step and what it does ([`Step`]).
//! - `plan`: all of them in order, with the buffers between ([`Plan`], [`Workspace`]).
//! - `file`: a plan as bytes ([`Plan::read`], [`Plan::write`]).
//!
//! Nothing is allocated while a plan runs but what the kernels copy edges into. What is deliberately absent: any search for
//! better plans. Whoever makes one ([`PlanBuilder`]) has found out which steps there should be.
//!
//! ```
//! use glimpse_plan::{Function, PlanBuilder, Shape, Step};
//!
//! // The mean of the pixels of each of two channels.
//! let mut builder = PlanBuilder::new([2, 1, 3]);
//! let planes = builder.input();
//! let sums = builder.real(Shape([1, 2, 1, 1]));
//! builder.push(Step::Sum { axes: [false, false, true, true], input: planes, output: sums }).unwrap();
//! let means = builder.real(Shape([1, 2, 1, 1]));
//! builder.push(Step::Map { function: Function::Scale(1.0 / 3.0), input: sums, output: means }).unwrap();
//! let plan = builder.finish(means).unwrap();
//!
//! let mut embedding = [0.0; 2];
//! let mut workspace = plan.workspace();
//! plan.run(&mut workspace, &[1.0, 2.0, 6.0, 3.0, 3.0, 3.0], &mut embedding);
//! assert_eq!(embedding, [3.0, 3.0]);
//! ```
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

mod file;
mod kernel;
mod plan;
mod shape;
mod step;

pub use glimpse_kernels::Memory;
pub use kernel::{Input, Kernel, Outputs};
pub use plan::{Alone, Plan, PlanBuilder, PlanError, Workers, Workspace};
pub use shape::{Shape, Value};
pub use step::{Function, Operation, Step};

#[cfg(test)]
mod tests;
