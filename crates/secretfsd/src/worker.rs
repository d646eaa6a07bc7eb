//! The one thread that all blocking calls run on, in their order.

use std::sync::mpsc;
use std::thread;

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// The thread; it ends when the last of these is dropped and its last job is done.
#[derive(Clone)]
pub struct Worker(mpsc::Sender<Job>);

impl Worker {
    /// Starts the thread.
    pub fn start() -> std::io::Result<Self> {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::Builder::new().name("blocking".to_owned()).spawn(move || {
            for job in jobs {
                job();
            }
        })?;
        Ok(Self(sender))
    }

    /// Queues a job; its result comes through the receiver. A job that panics closes the receiver.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let job = Box::new(move || {
            // Nobody may be waiting any more; the job's effect stands all the same.
            let _ = sender.send(job());
        });
        // A thread that is gone shows as a closed receiver.
        let _ = self.0.send(job);
        receiver
    }
}
