//! `--output-limit`: the workload's stdout and stderr are pipes of ours; what comes is counted, both together, and handed on
//! to where ours go, up to the limit.
//!
//! Invariants: not a byte beyond the limit is handed on, and none before it is dropped while its reader reads; each
//! stream keeps its order; nothing here waits, so a reader that is stuck or gone holds up neither the ladder nor the
//! seal, and what it did not get is counted. What the workload makes of its pipes (packet mode, pipe(2)) changes none of this; a
//! destination's reader may feel it only where the memory limit is used up.

use crate::audit::record::Output;
use crate::kernel::outcome::{Cause, Outcome};
use crate::kernel::pipe::{self, Destination, Stage};
use crate::kernel::pressure::Pressure;
use crate::machine::events::Event;
use crate::machine::types::Instant;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// What one step moves at most. No read is smaller: a packet is as large as a page, and what a read leaves of one is lost.
const CHUNK: usize = 64 * 1024;
/// What one look at a stream moves at most, before the loop looks at its signals again. More than a pipe holds, so that
/// one look empties it.
const ONE_LOOK: usize = 16 * CHUNK;
/// How long a reader that does not read is waited for once the workload is dead.
const PATIENCE: Duration = Duration::from_secs(1);

/// One stream on its way.
#[derive(Debug)]
struct Stream {
    name: &'static str,
    /// The workload's end of it; `None` after its end, or where its reader is gone.
    from: Option<OwnedFd>,
    to: Destination,
    splices: bool,
    /// On the way to a pipe.
    stage: Option<Stage>,
    /// Taken out of the pipe and neither staged nor written yet.
    held: Vec<u8>,
    /// The destination takes nothing at the moment.
    full: bool,
    /// Handed on.
    delivered: u64,
    /// Within the limit, and nobody took it.
    lost: u64,
    failure: Option<Errno>,
}

/// Both streams together.
#[derive(Debug)]
struct Count {
    /// What may still be handed on.
    left: u64,
    /// Beyond the limit, and dropped.
    beyond: u64,
}

impl Count {
    /// How many of the `n` bytes that were taken out of a pipe are within the limit.
    fn take(&mut self, n: u64) -> u64 {
        let within = n.min(self.left);
        self.left = self.left.saturating_sub(within);
        self.beyond = self.beyond.saturating_add(n.saturating_sub(within));
        within
    }
}

/// Both streams and what they may still write.
#[derive(Debug)]
pub struct Relay {
    limit: u64,
    count: Count,
    over: bool,
    /// A copy takes memory, which is not to be had where the limit is used up.
    pressure: Option<Pressure>,
    streams: Vec<Stream>,
    /// The workload's ends, until the fork.
    writers: Option<(OwnedFd, Option<OwnedFd>)>,
    buffer: Vec<u8>,
    /// When the last byte moved, once the workload is dead.
    last: Option<Instant>,
}

impl Relay {
    /// Makes the pipes. Where stdout and stderr are one file, one pipe serves both, which keeps the order between them. `source` is the
    /// option or the variable that asks for it.
    ///
    /// # Errors
    /// One line: who asked, which call, and its errno.
    pub fn open(limit: u64, source: &str) -> Result<Self, String> {
        let fail = |what: &'static str| move |e: Errno| format!("{source}: {what}: {} ({e:?})", e.desc());
        let stdout = Destination::of(std::io::stdout()).map_err(fail("stdout"))?;
        let stderr = Destination::of(std::io::stderr()).map_err(fail("stderr"))?;
        let (out, write_out) = pipe::pair().map_err(fail("pipe"))?;
        let one = stdout.is(&stderr);
        let mut streams = vec![Stream::new(if one { "output" } else { "stdout" }, out, stdout).map_err(fail("pipe"))?];
        let mut write_err = None;
        if !one {
            let (err, write) = pipe::pair().map_err(fail("pipe"))?;
            streams.push(Stream::new("stderr", err, stderr).map_err(fail("pipe"))?);
            write_err = Some(write);
        }
        Ok(Self {
            limit,
            count: Count { left: limit, beyond: 0 },
            over: false,
            pressure: Pressure::open(),
            streams,
            writers: Some((write_out, write_err)),
            buffer: Vec::new(),
            last: None,
        })
    }

    /// The workload's stdout and stderr, until `forked`.
    #[must_use]
    pub fn writers(&self) -> Option<(RawFd, RawFd)> {
        let (out, err) = self.writers.as_ref()?;
        Some((out.as_raw_fd(), err.as_ref().unwrap_or(out).as_raw_fd()))
    }

    /// The child has its ends, or there is none: ours are closed, so that the pipes can end.
    pub fn forked(&mut self) {
        self.writers = None;
    }

    /// Whether every write can be kept from waiting.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        if self.streams.iter().all(|s| s.to.never_waits()) {
            Outcome::Enforced
        } else {
            Outcome::Degraded(Cause::because(
                "stdout or stderr cannot be opened anew: a stuck reader may hold up a write",
            ))
        }
    }

    /// What to wait for: the pipe where something may come, else the destination that is full.
    pub fn fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.streams.iter().filter_map(|s| {
            if s.waits_for_room() {
                return Some(PollFd::new(s.to.as_fd(), PollFlags::POLLOUT));
            }
            s.from.as_ref().map(|from| PollFd::new(from.as_fd(), PollFlags::POLLIN))
        })
    }

    /// Moves what can be moved now; the limit's event, once, where there is more than it allows.
    pub fn ready(&mut self, now: Instant) -> Option<Event> {
        let mut moved = false;
        for stream in &mut self.streams {
            let before = self.count.left;
            let copies = stream.stage.is_none() || self.pressure.as_ref().is_none_or(|pressure| !pressure.is_high());
            moved |= stream.forward(&mut self.count, &mut self.buffer, copies);
            moved |= before != self.count.left;
            if self.count.left == 0 && !stream.waits_for_room() {
                self.count.take(stream.discard(&mut self.buffer));
            }
        }
        if moved && let Some(last) = self.last.as_mut() {
            *last = now;
        }
        self.exceeded()
    }

    /// The limit's event, once: from what was taken and what is still in the pipes, so that a slow reader changes nothing.
    pub fn exceeded(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        let waiting = self.streams.iter().map(Stream::queued).fold(0, u64::saturating_add);
        self.over = self.count.beyond > 0 || waiting > self.count.left;
        self.over.then_some(Event::OutputLimit)
    }

    /// The workload is dead: what is in the pipes is all there will be.
    pub fn drain(&mut self, now: Instant) {
        self.last = Some(now);
    }

    /// Whether nothing more is to be waited for, once the workload is dead: all is handed on, or no reader reads.
    #[must_use]
    pub fn settled(&self, now: Instant) -> bool {
        self.streams.iter().all(|s| !s.waits_for_room() && (self.count.left == 0 || s.queued() == 0))
            || self.due().is_some_and(|due| now >= due)
    }

    /// When the readers' time is up, once the workload is dead.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.last.map(|last| last.plus(PATIENCE))
    }

    /// The last look, and the account: what was handed on, and one line for each stream that lost something.
    pub fn close(&mut self, now: Instant) -> (Output, Vec<String>) {
        let _ = self.ready(now);
        let mut lines = Vec::new();
        for stream in &mut self.streams {
            // Whatever is left in the pipe counts against the limit as if it had been read.
            let within = self.count.take(stream.queued());
            stream.lose(within);
            stream.full = false;
            match stream.failure {
                Some(errno) => {
                    lines.push(format!("{}: {} bytes not delivered: write: {errno:?}", stream.name, stream.lost));
                }
                None if stream.lost > 0 => {
                    lines.push(format!("{}: {} bytes not delivered: nobody read them", stream.name, stream.lost));
                }
                None => {}
            }
        }
        let sum = |of: fn(&Stream) -> u64| self.streams.iter().map(of).fold(0, u64::saturating_add);
        let output = Output {
            limit: self.limit,
            delivered: sum(|s| s.delivered),
            undelivered: sum(|s| s.lost),
            beyond: self.count.beyond,
        };
        (output, lines)
    }
}

impl Stream {
    fn new(name: &'static str, from: OwnedFd, to: Destination) -> Result<Self, Errno> {
        let splices = to.splices();
        let stage = to.is_pipe().then(Stage::open).transpose()?;
        Ok(Self {
            name,
            from: Some(from),
            to,
            splices,
            stage,
            held: Vec::new(),
            full: false,
            delivered: 0,
            lost: 0,
            failure: None,
        })
    }

    /// Whether its next byte is the destination's to take.
    fn waits_for_room(&self) -> bool {
        self.full || self.holds() > 0
    }

    fn staged(&self) -> usize {
        self.stage.as_ref().map_or(0, Stage::holds)
    }

    /// Taken out of the pipe, and on the way.
    fn holds(&self) -> usize {
        self.staged().saturating_add(self.held.len())
    }

    fn queued(&self) -> u64 {
        self.from.as_ref().map_or(0, |from| pipe::queued(from).unwrap_or(0))
    }

    /// Moves up to what is left of the limit; whether anything moved. Without `copies` nothing that takes memory.
    fn forward(&mut self, count: &mut Count, buffer: &mut Vec<u8>, copies: bool) -> bool {
        let before = self.delivered;
        self.full = false;
        let mut looked = 0;
        while looked < ONE_LOOK && (count.left > 0 || self.holds() > 0) {
            let staged = self.staged();
            let result = if let Some(stage) = self.stage.as_mut().filter(|_| staged > 0) {
                stage.pour(&self.to)
            } else if !self.held.is_empty() {
                if let Some(Ok(n @ 1..)) = self.stage.as_mut().map(|stage| stage.fill(&self.held)) {
                    self.held.drain(..n.min(self.held.len()));
                    continue;
                }
                self.to.write(&self.held).inspect(|&n| drop(self.held.drain(..n.min(self.held.len()))))
            } else if let Some(from) = self.from.as_ref().filter(|_| self.splices && (self.stage.is_none() || !copies))
            {
                let allowed = usize::try_from(count.left).unwrap_or(usize::MAX).min(CHUNK);
                self.to.splice(from, allowed).inspect(|&n| {
                    count.take(length(n));
                })
            } else {
                let Some(from) = self.from.as_ref() else { break };
                clear(buffer);
                match nix::unistd::read(from, buffer.as_mut_slice()) {
                    Ok(0) => Ok(0),
                    Ok(n) => {
                        let within = usize::try_from(count.take(length(n))).unwrap_or(n);
                        self.held.extend_from_slice(buffer.get(..within).unwrap_or_default());
                        continue;
                    }
                    Err(Errno::EINTR) => continue,
                    Err(_) => break,
                }
            };
            match result {
                // The end: every writer has closed it.
                Ok(0) if staged == 0 && self.held.is_empty() => self.from = None,
                Ok(n) => {
                    self.delivered = self.delivered.saturating_add(length(n));
                    looked = looked.saturating_add(n.max(1));
                }
                Err(Errno::EINTR) => {}
                // splice(2) says the same of an empty pipe and of a full destination.
                Err(Errno::EAGAIN) => {
                    self.full = self.holds() > 0 || self.queued() > 0;
                    break;
                }
                Err(Errno::EINVAL | Errno::ENOSYS | Errno::EPERM) if self.splices => {
                    self.splices = false;
                    let mut staged = self.stage.take().map(Stage::empty).unwrap_or_default();
                    staged.append(&mut self.held);
                    self.held = staged;
                }
                Err(errno) => self.fail(errno, count),
            }
        }
        self.delivered != before
    }

    /// Nobody takes it any more. The workload's next write gets what it would have got without us: SIGPIPE or EPIPE.
    fn fail(&mut self, errno: Errno, count: &mut Count) {
        let within = self.queued().min(count.left);
        count.take(within);
        self.lose(within);
        self.failure = Some(errno);
    }

    /// What is held and these bytes of the pipe, which ends with them.
    fn lose(&mut self, within: u64) {
        self.lost = self.lost.saturating_add(within).saturating_add(length(self.holds()));
        self.held.clear();
        self.stage = None;
        self.from = None;
    }

    /// Beyond the limit: read, so that a workload that was asked to stop is not held up in a write, and dropped.
    fn discard(&mut self, buffer: &mut Vec<u8>) -> u64 {
        let mut dropped: u64 = 0;
        clear(buffer);
        while dropped < length(ONE_LOOK)
            && let Some(from) = self.from.as_ref()
        {
            match nix::unistd::read(from, buffer) {
                Ok(0) => self.from = None,
                Ok(n) => dropped = dropped.saturating_add(length(n)),
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        dropped
    }
}

/// The first time; by the allocator, which is quicker at it than code made for size.
fn clear(buffer: &mut Vec<u8>) {
    if buffer.is_empty() {
        *buffer = vec![0; CHUNK];
    }
}

fn length(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn with_and_without_memory_the_same_bytes() {
        for copies in [true, false] {
            let (from, write) = pipe::pair().unwrap();
            let (mut read, to) = std::io::pipe().unwrap();
            let mut stream = Stream::new("x", from, Destination::of(&to).unwrap()).unwrap();
            let mut count = Count { left: 10_000, beyond: 0 };
            let mut buffer = Vec::new();
            std::fs::File::from(write).write_all(&[b'x'; 12_000]).unwrap();
            assert!(stream.forward(&mut count, &mut buffer, copies));
            let dropped = stream.discard(&mut buffer);
            count.take(dropped);
            assert_eq!((stream.delivered, count.left, count.beyond, stream.holds()), (10_000, 0, 2000, 0), "{copies}");
            // What was spliced took no copy of ours; what was copied was read whole.
            assert_eq!(dropped, if copies { 0 } else { 2000 });
            drop((to, stream));
            let mut bytes = Vec::new();
            read.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len(), 10_000);
        }
    }

    #[test]
    fn what_is_on_the_way_to_a_reader_that_is_gone_is_lost_and_counted() {
        let (from, write) = pipe::pair().unwrap();
        let (read, to) = std::io::pipe().unwrap();
        let mut stream = Stream::new("x", from, Destination::of(&to).unwrap()).unwrap();
        let mut count = Count { left: 100_000, beyond: 0 };
        let mut write = std::fs::File::from(write);
        let mut buffer = Vec::new();
        // More than the destination holds.
        for _ in 0..2 {
            write.write_all(&[b'x'; 50_000]).unwrap();
            stream.forward(&mut count, &mut buffer, true);
        }
        assert!(stream.waits_for_room() && stream.staged() > 0);
        drop(read);
        stream.forward(&mut count, &mut buffer, true);
        assert_eq!((stream.failure, stream.delivered + stream.lost), (Some(Errno::EPIPE), 100_000));
    }
}
