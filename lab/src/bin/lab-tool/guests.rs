//! `lab-tool serve --one-thread`: all connections wait in one thread. A thread for each makes a machine that is busy busier:
//! on one where they are dear (User-Mode Linux) two hundred of them were most of what it did.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::Context;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::answer::Server;
use crate::crowd::{Came, Line};

/// A connection, which is read from when there is something to read alone: so that nothing need tell it not to wait.
struct Guest {
    stream: TcpStream,
    client: SocketAddr,
    line: Line,
}

/// What becomes of one that had something to read.
enum Next {
    Stays,
    Leaves,
    /// It asks for more than an answer of one line.
    Moves,
}

pub(crate) fn serve(server: &Arc<Server>, listener: &TcpListener) -> anyhow::Result<()> {
    listener.set_nonblocking(true).context("asking not to be waited for")?;
    let mut guests: Vec<Guest> = Vec::new();
    loop {
        let streams = guests.iter().map(|guest| guest.stream.as_fd());
        let mut asked: Vec<PollFd<'_>> = std::iter::once(listener.as_fd())
            .chain(streams)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut asked, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for connections"),
        }
        let ready: Vec<bool> = asked.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        let mut ready = ready.into_iter();
        let comes = ready.next() == Some(true);
        let mut moving = Vec::new();
        let mut stay = Vec::with_capacity(guests.len() + 1);
        for mut guest in guests {
            match ready.next() {
                Some(true) => match guest.next(server) {
                    Next::Stays => stay.push(guest),
                    Next::Leaves => {}
                    Next::Moves => moving.push(guest),
                },
                _ => stay.push(guest),
            }
        }
        guests = stay;
        for guest in moving {
            let server = server.clone();
            std::thread::spawn(move || {
                // A client that went away is its own business.
                let _ = server.connection(&guest.stream, guest.client, guest.line.text().as_bytes());
            });
        }
        if comes && let Ok((stream, client)) = listener.accept() {
            guests.push(Guest {
                stream,
                client,
                line: Line::new(),
            });
        }
    }
}

impl Guest {
    fn next(&mut self, server: &Server) -> Next {
        match self.line.read(&self.stream) {
            Ok(Came::Part) => return Next::Stays,
            Ok(Came::Whole) => {}
            Ok(Came::End) => return Next::Leaves,
            // Longer than a line of ours: whoever reads the rest says so.
            Err(e) if e.kind() == ErrorKind::InvalidData => return Next::Moves,
            Err(_) => return Next::Leaves,
        }
        let stays = match self.line.text() {
            "WHO\n" => true,
            "BYE\n" => false,
            _ => return Next::Moves,
        };
        let told = (&self.stream).write_all(server.answer(self.client).as_bytes());
        self.line.clear();
        match told.is_ok() && stays {
            true => Next::Stays,
            false => Next::Leaves,
        }
    }
}
