//! Many small requests over many concurrent connections, from one thread.
//!
//! A thread for each connection would spend more time on wake-ups than the server does on the
//! requests.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::event::{Timespec, epoll};

use super::head::Head;
use super::requests::Requests;

/// The limit for a response.
const TIMEOUT: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// The end of a storm.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// After this time. The requests are repeated.
    Elapsed(Duration),
    /// After one response to each request.
    Answered,
}

/// The result of a storm.
#[derive(Debug)]
pub struct Outcome {
    pub answers: usize,
    /// The times from sending a request to its complete response, in nanoseconds.
    pub latencies: Vec<u32>,
}

/// Sends requests over `connections`. Each sends a new one after every response.
pub fn storm(
    address: SocketAddr,
    connections: usize,
    requests: &Requests,
    until: Until,
) -> anyhow::Result<Outcome> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut all = Vec::with_capacity(connections);
    for number in 0..connections {
        let connection = Connection::open(address)?;
        let data = epoll::EventData::new_u64(number as u64);
        epoll::add(&poll, &connection.stream, data, epoll::EventFlags::IN)?;
        all.push(connection);
    }

    let begin = Instant::now();
    let mut storm = Storm { requests, until, begin, sent: 0, latencies: Vec::new() };
    let mut waiting = 0;
    for connection in &mut all {
        waiting += usize::from(storm.send_next(connection, begin)?);
    }
    let mut events = Vec::with_capacity(connections);
    while waiting > 0 {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), Some(&TIMEOUT))?;
        ensure!(!events.is_empty(), "no answer for a minute");
        for event in &events {
            let connection = &mut all[event.data.u64() as usize];
            if storm.receive(connection)? {
                let now = Instant::now();
                let latency = now.duration_since(connection.sent).as_nanos();
                storm.latencies.push(u32::try_from(latency).unwrap_or(u32::MAX));
                if !storm.send_next(connection, now)? {
                    waiting -= 1;
                }
            }
        }
    }
    Ok(Outcome { answers: storm.latencies.len(), latencies: storm.latencies })
}

struct Connection {
    stream: TcpStream,
    /// The index of the current request.
    request: usize,
    sent: Instant,
    /// The received part of the response.
    answer: Box<[u8; 16 * 1024]>,
    filled: usize,
}

impl Connection {
    fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            request: 0,
            sent: Instant::now(),
            answer: Box::new([0; 16 * 1024]),
            filled: 0,
        })
    }
}

struct Storm<'a> {
    requests: &'a Requests,
    until: Until,
    begin: Instant,
    sent: usize,
    latencies: Vec<u32>,
}

impl Storm<'_> {
    /// Sends the next request, unless the storm is over.
    fn send_next(&mut self, connection: &mut Connection, now: Instant) -> anyhow::Result<bool> {
        let over = match self.until {
            Until::Elapsed(time) => now.duration_since(self.begin) >= time,
            Until::Answered => self.sent == self.requests.count(),
        };
        if over {
            return Ok(false);
        }
        connection.request = self.sent % self.requests.count();
        connection.filled = 0;
        connection.sent = now;
        self.sent += 1;
        let bytes = self.requests.bytes(connection.request);
        let written = (&connection.stream).write(bytes).context("sending a request")?;
        ensure!(written == bytes.len(), "a request of {} bytes fits no socket", bytes.len());
        Ok(true)
    }

    /// Reads from a connection. Returns whether the response is complete.
    fn receive(&self, connection: &mut Connection) -> anyhow::Result<bool> {
        let free = &mut connection.answer[connection.filled..];
        match (&connection.stream).read(free) {
            Ok(0) => bail!("the server closed a connection, or sent too much"),
            Ok(count) => connection.filled += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("reading an answer"),
        }
        let answer = &connection.answer[..connection.filled];
        let Some(head) = Head::parse(answer)? else {
            return Ok(false);
        };
        if head.status != self.requests.status {
            bail!(
                "{} where {} was expected: {}",
                head.status,
                self.requests.status,
                String::from_utf8_lossy(answer)
            );
        }
        if let Some(length) = self.requests.length(connection.request) {
            ensure!(head.body == length, "{} bytes where {length} were expected", head.body);
        }
        let missing = head.length as u64 + head.body - connection.filled as u64;
        Ok(missing == 0)
    }
}
