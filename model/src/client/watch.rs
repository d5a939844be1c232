//! A stream of JSON lines that outlives netd's restarts.

use std::{collections::VecDeque, marker::PhantomData, time::Duration};

use http_body_util::BodyExt;
use hyper::{
    Method,
    body::{Bytes, Incoming},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Client, Connection, MAX_ANSWER, foreign, refusal};
use crate::{ApiError, Code};

/// Longest line that is read, octets; a longer one breaks the stream. Ten thousand assignments stay below it.
pub const MAX_LINE: usize = 16 << 20;

/// First and longest pause before the stream is opened again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What a watch tells.
#[derive(Debug)]
pub enum WatchEvent<T> {
    /// The stream is open (again); a snapshot follows unless netd could resume.
    Up,
    /// A line.
    Item(T),
    /// The stream ended or could not be opened; told once each time, it is opened again after a pause.
    Down(ApiError),
}

/// A stream of JSON lines, made by [`Client::watch`].
#[derive(Debug)]
pub struct Watch<T> {
    client: Client,
    path: String,
    resume: fn(&T) -> Option<String>,
    last: Option<String>,
    open: Option<(Incoming, Connection)>,
    lines: Lines,
    retry: Option<Instant>,
    pause: Duration,
    told_down: bool,
    _item: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Watch<T> {
    pub(super) fn new(client: Client, path: String, resume: fn(&T) -> Option<String>) -> Self {
        Watch {
            client,
            path,
            resume,
            last: None,
            open: None,
            lines: Lines::default(),
            retry: None,
            pause: PAUSE.0,
            told_down: false,
            _item: PhantomData,
        }
    }

    /// The next event. May be dropped while it waits: what was read is kept, the pause goes on.
    pub async fn next(&mut self) -> WatchEvent<T> {
        loop {
            let step = match self.open {
                Some(_) => self.read().await,
                None => self.reopen().await.map(|()| Some(WatchEvent::Up)),
            };
            match step {
                Ok(Some(event)) => return event,
                Ok(None) => {}
                Err(e) => {
                    self.open = None;
                    self.retry = Some(Instant::now() + self.pause);
                    self.pause = (self.pause * 2).min(PAUSE.1);
                    if !std::mem::replace(&mut self.told_down, true) {
                        return WatchEvent::Down(e);
                    }
                }
            }
        }
    }

    async fn reopen(&mut self) -> Result<(), ApiError> {
        if let Some(at) = self.retry {
            sleep_until(at).await;
        }
        let path = match &self.last {
            Some(resume) => {
                let joint = if self.path.contains('?') { '&' } else { '?' };
                format!("{}{joint}resume={resume}", self.path)
            }
            None => self.path.clone(),
        };
        let head = self.client.send(Method::GET, &path, Bytes::new());
        let (response, connection) = timeout(self.client.timeout, head)
            .await
            .map_err(|_| self.client.slow(&path))??;
        let status = response.status();
        if !status.is_success() {
            let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER).collect();
            let bytes = timeout(self.client.timeout, body).await.ok().and_then(Result::ok);
            let bytes = bytes.map(|b| b.to_bytes()).unwrap_or_default();
            return Err(refusal(&format!("GET {path}"), status, &bytes));
        }
        self.lines = Lines::default();
        self.open = Some((response.into_body(), connection));
        self.told_down = false;
        Ok(())
    }

    async fn read(&mut self) -> Result<Option<WatchEvent<T>>, ApiError> {
        if let Some(line) = self.lines.pop() {
            if line.trim_ascii().is_empty() {
                // A heartbeat.
                return Ok(None);
            }
            let item = serde_json::from_slice::<T>(&line).map_err(|e| foreign(&format!("GET {}", self.path), &e))?;
            // Only a line that was understood shows that the stream is sound: a bad one must not be asked for in a hurry.
            self.pause = PAUSE.0;
            self.last = (self.resume)(&item);
            return Ok(Some(WatchEvent::Item(item)));
        }
        let Some((body, _)) = &mut self.open else {
            return Ok(None);
        };
        match body.frame().await {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    self.lines.push(&data)?;
                }
                Ok(None)
            }
            Some(Err(e)) => Err(self.client.unreachable(format!("the stream broke: {e}"))),
            None => Err(self.client.unreachable(format!("netd ended the stream {}", self.path))),
        }
    }
}

/// Cuts a stream of octets into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    whole: VecDeque<Vec<u8>>,
    part: Vec<u8>,
}

impl Lines {
    pub(super) fn push(&mut self, mut data: &[u8]) -> Result<(), ApiError> {
        while let Some(at) = data.iter().position(|b| *b == b'\n') {
            let (line, rest) = data.split_at(at);
            self.extend(line)?;
            self.whole.push_back(std::mem::take(&mut self.part));
            data = rest.get(1..).unwrap_or_default();
        }
        self.extend(data)
    }

    fn extend(&mut self, data: &[u8]) -> Result<(), ApiError> {
        if self.part.len() + data.len() > MAX_LINE {
            self.part = Vec::new();
            return Err(ApiError::new(
                Code::Internal,
                format!("a line of the stream is longer than {MAX_LINE} octets"),
                "",
            ));
        }
        self.part.extend_from_slice(data);
        Ok(())
    }

    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        self.whole.pop_front()
    }
}
