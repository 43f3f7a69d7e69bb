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

/// A listening socket and what its connections are for.
struct Port {
    listener: TcpListener,
    service: fn() -> Role,
}

impl Port {
    fn listen(port: u16, service: fn() -> Role) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, service })
    }
}

/// Serves the three ports until `requests` have been applied and answered; for ever when it is
/// `None`. Returns the number of applied requests.
///
/// # Errors
/// When a port cannot be listened on or polling fails. A client's errors end only its connection.
pub(crate) fn serve(requests: Option<u64>) -> io::Result<u64> {
    let ports = [
        Port::listen(WITNESS_PORT, || Role::Witness(Connection::default()))?,
        Port::listen(SINK_PORT, || Role::Sink)?,
        Port::listen(SOURCE_PORT, || Role::Source)?,
    ];
    serve_ports(&ports, requests)
}

fn serve_ports(ports: &[Port], requests: Option<u64>) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let (mut service, mut clients) = (Service::default(), Vec::<Client>::new());
    loop {
        if requests.is_some_and(|wanted| service.applied() >= wanted)
            && !clients.iter().any(owes_answers)
        {
            return Ok(service.applied());
        }
        let ready = wait(ports, &clients)?;
        let (ports_ready, clients_ready) = ready.split_at(ports.len());
        let mut ready = clients_ready.iter();
        clients.retain_mut(|client| {
            let flags = ready.next().copied().unwrap_or(PollFlags::empty());
            flags.is_empty() || advance(client, &mut service, &mut buffer).is_ok()
        });
        for (port, flags) in ports.iter().zip(ports_ready) {
            if !flags.is_empty() {
                accept(port, &mut clients);
            }
        }
    }
}

fn owes_answers(client: &Client) -> bool {
    matches!(&client.role, Role::Witness(connection) if connection.wants_to_send())
}

/// Waits until something can be done; the answer is in the order ports, clients.
fn wait(ports: &[Port], clients: &[Client]) -> io::Result<Vec<PollFlags>> {
    let accepting = if clients.len() < CONNECTIONS_MAX {
        PollFlags::IN
    } else {
        PollFlags::empty()
    };
    let mut fds: Vec<_> = ports
        .iter()
        .map(|port| PollFd::new(&port.listener, accepting))
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

fn accept(port: &Port, clients: &mut Vec<Client>) {
    while clients.len() < CONNECTIONS_MAX {
        let Ok((stream, _)) = port.listener.accept() else {
            return;
        };
        let prepared = stream
            .set_nonblocking(true)
            .and_then(|()| stream.set_nodelay(true));
        if prepared.is_ok() {
            let role = (port.service)();
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Shutdown;
    use std::thread;
    use witness::expectation::Expectation;
    use witness::wire::{REPLY_BYTES, Reply};

    fn witness_port() -> (Port, std::net::SocketAddr) {
        let port = Port::listen(0, || Role::Witness(Connection::default())).unwrap();
        let number = port.listener.local_addr().unwrap().port();
        (port, (Ipv4Addr::LOCALHOST, number).into())
    }

    #[test]
    fn serves_over_tcp_and_ends_after_the_wanted_number() {
        let (port, address) = witness_port();
        let server = thread::spawn(move || serve_ports(&[port], Some(20)).unwrap());
        let mut stream = TcpStream::connect(address).unwrap();
        let mut expectation = Expectation::new(7);
        for round in 0..20u8 {
            let request = expectation.next_request(vec![round; 100], 1_000).unwrap();
            let mut frame = Vec::new();
            request.encode(&mut frame);
            stream.write_all(&frame).unwrap();
            let mut answer = [0; REPLY_BYTES + 1_000];
            stream.read_exact(&mut answer).unwrap();
            let reply = Reply::decode(&answer).unwrap().unwrap();
            expectation.check(&reply).unwrap();
        }
        assert_eq!(server.join().unwrap(), 20);
    }

    #[test]
    fn a_half_closed_connection_still_gets_its_answers_and_a_bad_one_is_closed() {
        let (port, address) = witness_port();
        let server = thread::spawn(move || serve_ports(&[port], Some(3)).unwrap());
        let mut bad = TcpStream::connect(address).unwrap();
        bad.write_all(&[0; 64]).unwrap();
        let mut nothing = Vec::new();
        let closed = bad.read_to_end(&mut nothing);
        assert!(
            closed.is_err() || nothing.is_empty(),
            "no answer to what is no request"
        );
        let mut stream = TcpStream::connect(address).unwrap();
        let mut expectation = Expectation::new(1);
        let mut frames = Vec::new();
        for _ in 0..3 {
            expectation
                .next_request(vec![], 0)
                .unwrap()
                .encode(&mut frames);
        }
        stream.write_all(&frames).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answers = Vec::new();
        stream.read_to_end(&mut answers).unwrap();
        for answer in answers.chunks(REPLY_BYTES) {
            expectation
                .check(&Reply::decode(answer).unwrap().unwrap())
                .unwrap();
        }
        assert_eq!((expectation.acknowledged(), server.join().unwrap()), (3, 3));
    }
}
