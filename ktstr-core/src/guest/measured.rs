//! Sends measurements to the host as soon as they are taken.
//!
//! A measurement is thus on the host even if the body drops the verdict it belongs to, returns an
//! error, panics or times out.

use std::cell::RefCell;
use std::rc::Rc;

use crate::model::measurement::{BoundedMeasurements, Measurement};
use crate::model::wire::GuestMessage;

/// The number of measurements in a message, which must fit a frame.
const PER_MESSAGE: usize = 256;

thread_local! {
    static CURRENT: RefCell<Option<Sender>> = const { RefCell::new(None) };
}

#[derive(Clone)]
struct Sender {
    send: Rc<dyn Fn(GuestMessage)>,
    sent: Rc<RefCell<BoundedMeasurements>>,
}

/// Ends the sending of measurements when it is dropped.
#[derive(Debug)]
pub(crate) struct SendGuard(());

impl Drop for SendGuard {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

/// Sends the measurements of this thread by `send` until the guard is dropped.
#[must_use]
pub(crate) fn send_by(send: Rc<dyn Fn(GuestMessage)>) -> SendGuard {
    CURRENT.set(Some(Sender { send, sent: Rc::default() }));
    SendGuard(())
}

/// Sends measurements of the test body that runs on this thread. Does nothing on other threads: the
/// measurements of their claims are sent with the verdict of the body.
pub(crate) fn send<'a>(measurements: impl IntoIterator<Item = &'a Measurement>) {
    let Some(sender) = CURRENT.with_borrow(Clone::clone) else { return };
    sender.send(measurements.into_iter().cloned());
}

/// Sends those measurements of the body's verdict that were not sent before.
pub(crate) fn send_rest(measurements: Vec<Measurement>) {
    let Some(sender) = CURRENT.with_borrow(Clone::clone) else { return };
    let rest = sender.sent.borrow().missing(measurements);
    sender.send(rest.into_iter());
}

impl Sender {
    fn send(&self, measurements: impl Iterator<Item = Measurement>) {
        let mut list = Vec::new();
        for measured in measurements.filter_map(Measurement::bounded) {
            let mut sent = self.sent.borrow_mut();
            if sent.is_truncated() {
                break;
            }
            // The first one beyond the bound is sent, too: the host then records that some are missing.
            sent.add(measured.clone());
            list.push(measured);
        }
        while !list.is_empty() {
            let rest = list.split_off(list.len().min(PER_MESSAGE));
            (self.send)(GuestMessage::Measurements(list));
            list = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::measurement::Scope;
    use crate::model::wire::Payload;

    type Messages = Rc<RefCell<Vec<GuestMessage>>>;

    fn collect() -> (Messages, SendGuard) {
        let messages = Messages::default();
        let received = messages.clone();
        let guard = send_by(Rc::new(move |message| received.borrow_mut().push(message)));
        (messages, guard)
    }

    fn measured(name: &str) -> Measurement {
        Measurement::new(name, 1.0, "ms")
    }

    #[test]
    fn send_rest_sends_what_was_not_sent() {
        let (messages, guard) = collect();
        send(&[measured("a"), Measurement::new("nan", f64::NAN, ""), measured("c")]);
        send_rest(vec![measured("a"), measured("b"), measured("a")]);
        send_rest(Vec::new());
        drop(guard);
        send(&[measured("late")]);
        let first = GuestMessage::Measurements(vec![measured("a"), measured("c")]);
        let rest = GuestMessage::Measurements(vec![measured("b"), measured("a")]);
        assert_eq!(messages.take(), [first, rest]);
    }

    #[test]
    fn send_fits_frames_and_stops_after_the_bound() {
        let (messages, _guard) = collect();
        let long = "x".repeat(1 << 20);
        let scope = Scope::Payload { name: long.clone(), cgroup: long.clone() };
        let measured = Measurement::new(&*long, 1.0, &*long).scope(scope).bounded().unwrap();
        let mut host = BoundedMeasurements::default();
        for _ in 0..100 {
            send(&vec![measured.clone(); 1000]);
        }
        for message in messages.take() {
            Payload::encode(&message).unwrap();
            let GuestMessage::Measurements(list) = message else { panic!("{message:?}") };
            list.into_iter().for_each(|measured| {
                assert!(!host.is_truncated());
                host.add(measured);
            });
        }
        // The host knows that some are missing.
        assert!(host.is_truncated());
    }
}
