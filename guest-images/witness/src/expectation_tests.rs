//! A faithful service satisfies the oracle; each kind of unfaithful one is named.

use super::*;
use crate::service::Service;
use proptest::prelude::*;

fn ask(expectation: &mut Expectation, payload: &[u8]) -> Request {
    expectation
        .next_request(payload.to_vec(), 0)
        .expect("few in flight")
}

#[test]
fn a_faithful_service_satisfies_it() {
    let (mut service, mut one, mut two) =
        (Service::default(), Expectation::new(1), Expectation::new(2));
    for round in 0..100u8 {
        for expectation in [&mut one, &mut two] {
            let first = ask(expectation, &[round]);
            let second = ask(expectation, &[round, round]);
            for request in [first, second] {
                let reply = service.handle(&request);
                expectation.check(&reply).expect("faithful");
            }
        }
    }
    assert_eq!(
        (one.acknowledged(), two.acknowledged(), service.applied()),
        (200, 200, 400)
    );
}

#[test]
fn a_client_that_comes_back_knows_its_own_history() {
    let (mut service, mut before) = (Service::default(), Expectation::new(1));
    for round in 0..9u8 {
        let request = ask(&mut before, &[round]);
        before.check(&service.handle(&request)).expect("faithful");
    }
    let history = |last: u8| (0..last).map(|round| vec![round]);
    let report = service.handle(&before.report_request());
    let mut again = Expectation::after(1, history(7));
    for round in 7..12 {
        ask(&mut again, &[round]);
    }
    let rest = again.resume(&report).expect("it is the same history");
    assert_eq!((rest.len(), again.acknowledged()), (3, 9));
    for request in rest {
        again.check(&service.handle(&request)).expect("faithful");
    }
    let report = service.handle(&again.report_request());
    let mut other = Expectation::after(1, (0..12).map(|round| vec![round / 2]));
    assert!(matches!(
        other.resume(&report),
        Err(Fault::WrongHash { .. })
    ));
}

#[test]
fn a_rolled_back_service_is_found() {
    let (mut service, mut expectation) = (Service::default(), Expectation::new(1));
    let old = service.clone();
    let request = ask(&mut expectation, b"x");
    expectation
        .check(&service.handle(&request))
        .expect("faithful");
    let mut service = old;
    let request = ask(&mut expectation, b"y");
    let fault = expectation
        .check(&service.handle(&request))
        .expect_err("rolled back");
    assert_eq!(
        fault,
        Fault::RolledBack {
            acknowledged: 1,
            found: 0
        }
    );
    let report = service.handle(&expectation.report_request());
    assert_eq!(
        expectation.resume(&report),
        Err(Fault::RolledBack {
            acknowledged: 1,
            found: 0
        })
    );
}

#[test]
fn a_repeated_request_is_found() {
    let (mut service, mut expectation) = (Service::default(), Expectation::new(1));
    let request = ask(&mut expectation, b"x");
    service.handle(&request);
    let fault = expectation
        .check(&service.handle(&request))
        .expect_err("applied before");
    assert_eq!(
        fault,
        Fault::OutOfTurn {
            due: 1,
            guest_expects: 2
        }
    );
}

#[test]
fn a_changed_payload_is_found() {
    let (mut service, mut expectation) = (Service::default(), Expectation::new(1));
    let request = Request {
        payload: b"z".to_vec(),
        ..ask(&mut expectation, b"x")
    };
    let fault = expectation
        .check(&service.handle(&request))
        .expect_err("other history");
    assert!(
        matches!(fault, Fault::WrongHash { sequence: 1, .. }),
        "{fault}"
    );
}

#[test]
fn requests_from_nowhere_are_found() {
    let (mut service, mut expectation) = (Service::default(), Expectation::new(1));
    let mut other = Expectation::new(1);
    service.handle(&ask(&mut other, b"x"));
    let report = service.handle(&expectation.report_request());
    assert_eq!(
        expectation.resume(&report),
        Err(Fault::NeverSent { sent: 0, found: 1 })
    );
}

#[test]
fn a_second_execution_with_other_clients_is_found_by_its_count() {
    let (mut service, mut expectation) = (Service::default(), Expectation::new(1));
    let mut other = Expectation::new(2);
    service.handle(&ask(&mut other, b"x"));
    let mut fork = service.clone();
    let request = ask(&mut expectation, b"1");
    expectation
        .check(&service.handle(&request))
        .expect("faithful");
    fork.handle(&request);
    let report = Reply {
        global_counter: 1,
        ..fork.handle(&expectation.report_request())
    };
    assert_eq!(
        expectation.resume(&report),
        Err(Fault::GlobalWentBack {
            before: 2,
            found: 1
        })
    );
}

#[test]
fn replies_nobody_asked_for_are_found() {
    let mut expectation = Expectation::new(1);
    let reply = Service::default().handle(&Expectation::new(1).report_request());
    assert_eq!(
        expectation.check(&reply),
        Err(Fault::NotMine {
            client: 1,
            sequence: 0
        })
    );
}

#[test]
fn requests_in_flight_are_bounded() {
    let mut expectation = Expectation::new(1);
    for _ in 0..IN_FLIGHT_MAX {
        assert!(expectation.next_request(vec![], 0).is_some());
    }
    assert!(expectation.next_request(vec![], 0).is_none());
}

proptest! {
    /// The connection breaks after `applied` of `sent` requests reached the guest and `heard`
    /// replies came back; whatever the numbers, the client resumes and nothing is lost or repeated.
    #[test]
    fn a_lost_connection_is_resumed(sent in 0..50usize, applied in 0..50usize, heard in 0..50usize) {
        let applied = applied.min(sent);
        let heard = heard.min(applied);
        let (mut service, mut expectation) = (Service::default(), Expectation::new(3));
        let requests: Vec<_> = (0..sent).map(|n| ask(&mut expectation, &n.to_le_bytes())).collect();
        let replies: Vec<_> = requests[..applied].iter().map(|request| service.handle(request)).collect();
        for reply in &replies[..heard] {
            expectation.check(reply).expect("faithful");
        }
        let report = service.handle(&expectation.report_request());
        let again = expectation.resume(&report).expect("faithful");
        prop_assert_eq!(again.len(), sent - applied);
        for request in again {
            let reply = service.handle(&request);
            expectation.check(&reply).expect("faithful");
        }
        prop_assert_eq!(expectation.acknowledged(), sent as u64);
        prop_assert_eq!(service.applied(), sent as u64);
    }
}
