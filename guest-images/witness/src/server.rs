//! Sockets of the witness: one thread, one `poll` loop, non-blocking.
//!
//! One thread because the guest has one processor and because the order in which requests are
//! applied should follow from the order of packets alone. Connections beyond
//! [`CONNECTIONS_MAX`] wait in the kernel's backlog.

use rustix::event::{PollFd, PollFlags, poll};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use witness::connection::Connection;
use witness::service::Service;
use witness::{SINK_PORT, SOURCE_PORT, WITNESS_PORT};

/// Most connections at once.
const CONNECTIONS_MAX: usize = 256;
/// Bytes read or written at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// What one connection is for.
enum Role {
    Witness(Connection),
    Sink,
    Source,
}

struct Client {
    stream: TcpStream,
    role: Role,
}

/// Serves until `requests` have been applied and answered; for ever when it is `None`.
///
/// # Errors
/// When a port cannot be listened on or polling fails. A client's errors end only its connection.
pub(crate) fn serve(requests: Option<u64>) -> io::Result<u64> {
    let ports = [WITNESS_PORT, SINK_PORT, SOURCE_PORT];
    let mut listeners = Vec::new();
    for port in ports {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
        listener.set_nonblocking(true)?;
        listeners.push(listener);
    }
    let mut buffer = vec![0; CHUNK_BYTES];
    let (mut service, mut clients) = (Service::default(), Vec::<Client>::new());
    loop {
        if requests.is_some_and(|wanted| service.applied() >= wanted)
            && !clients.iter().any(owes_answers)
        {
            return Ok(service.applied());
        }
        let ready = wait(&listeners, &clients)?;
        let (listeners_ready, clients_ready) = ready.split_at(listeners.len());
        let mut ready = clients_ready.iter();
        clients.retain_mut(|client| {
            let flags = ready.next().copied().unwrap_or(PollFlags::empty());
            flags.is_empty() || advance(client, &mut service, &mut buffer).is_ok()
        });
        for (listener, _) in listeners
            .iter()
            .zip(listeners_ready)
            .filter(|(_, flags)| !flags.is_empty())
        {
            accept(listener, &mut clients);
        }
    }
}

fn owes_answers(client: &Client) -> bool {
    matches!(&client.role, Role::Witness(connection) if connection.wants_to_send())
}

/// Waits until something can be done; the answer is in the order listeners, clients.
fn wait(listeners: &[TcpListener], clients: &[Client]) -> io::Result<Vec<PollFlags>> {
    let accepting = if clients.len() < CONNECTIONS_MAX {
        PollFlags::IN
    } else {
        PollFlags::empty()
    };
    let mut fds: Vec<_> = listeners
        .iter()
        .map(|listener| PollFd::new(listener, accepting))
        .collect();
    fds.extend(
        clients
            .iter()
            .map(|client| PollFd::new(&client.stream, interest(client))),
    );
    loop {
        match poll(&mut fds, None) {
            Ok(_) => return Ok(fds.iter().map(PollFd::revents).collect()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn interest(client: &Client) -> PollFlags {
    match &client.role {
        Role::Witness(connection) => {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, connection.room() > 0);
            flags.set(PollFlags::OUT, connection.wants_to_send());
            flags
        }
        Role::Sink => PollFlags::IN,
        Role::Source => PollFlags::OUT,
    }
}

fn accept(listener: &TcpListener, clients: &mut Vec<Client>) {
    while clients.len() < CONNECTIONS_MAX {
        let Ok((stream, _)) = listener.accept() else {
            return;
        };
        let port = listener.local_addr().map_or(0, |address| address.port());
        let role = match port {
            SINK_PORT => Role::Sink,
            SOURCE_PORT => Role::Source,
            _ => Role::Witness(Connection::default()),
        };
        let prepared = stream
            .set_nonblocking(true)
            .and_then(|()| stream.set_nodelay(true));
        if prepared.is_ok() {
            clients.push(Client { stream, role });
        }
    }
}

/// Does what can be done without waiting. An error means: close this connection.
fn advance(client: &mut Client, service: &mut Service, buffer: &mut [u8]) -> io::Result<()> {
    match &mut client.role {
        Role::Witness(connection) => converse(&mut client.stream, connection, service, buffer),
        Role::Sink => receive(&mut client.stream, buffer).map(drop),
        Role::Source => {
            buffer.fill(0);
            send(&mut client.stream, buffer).map(drop)
        }
    }
}

fn converse(
    stream: &mut TcpStream,
    connection: &mut Connection,
    service: &mut Service,
    buffer: &mut [u8],
) -> io::Result<()> {
    let room = connection.room().min(buffer.len());
    // A client may close its sending half and still wait for answers: send before giving up.
    let received = if room > 0 {
        receive(stream, &mut buffer[..room])
    } else {
        Ok(0)
    };
    if let Ok(count) = received {
        connection
            .receive(&buffer[..count], service)
            .map_err(io::Error::other)?;
    }
    while connection.wants_to_send() {
        let count = send(stream, connection.output())?;
        if count == 0 {
            break;
        }
        connection.sent(count, service).map_err(io::Error::other)?;
    }
    received.map(drop)
}

/// Bytes read; 0 when there is nothing now; an error at the end of the stream.
fn receive(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    match stream.read(buffer) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(count) => Ok(count),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Ok(0)
        }
        Err(error) => Err(error),
    }
}

/// Bytes written; 0 when nothing can be written now.
fn send(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match stream.write(bytes) {
        Ok(count) => Ok(count),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Ok(0)
        }
        Err(error) => Err(error),
    }
}
