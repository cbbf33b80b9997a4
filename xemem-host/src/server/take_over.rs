//! A broker with a keeper: taking over from one that died, and looking after
//! the keeper in turn.
//!
//! The keeper hands over what it has; the journal says what that is. Replies
//! that may not have been sent are sent again, the request they answer is taken
//! out of its socket, and whoever waits is woken once. What cannot be taken
//! over, because the journal is another version's or does not add up, is let go
//! of, aloud: the broker begins afresh and its clients see it end.

use super::custody::Custody;
use super::journal::{Record, Redo};
use super::objects::Objects;
use super::{Kept, Options, Server, ServerError, Source, now_ms, settings};
use crate::broker::{Broker, Effect, PeerId};
use crate::keeper::channel::{Channel, Key, Message};
use crate::keeper::{Command, log};
use crate::wire::Reply;
use crate::wire::socket::{discard, peek};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// What was handed over.
type Left = BTreeMap<Key, OwnedFd>;

impl Server {
    /// Serves for the keeper at the other end of `channel`, who hands over what
    /// there is. `command` starts another keeper should this one die.
    ///
    /// # Errors
    /// [`ServerError`]; the keeper still has everything.
    pub(crate) fn for_keeper(
        channel: Channel,
        options: Options,
        command: Command,
    ) -> Result<Self, ServerError> {
        let failed = ServerError::system("take over from the keeper");
        let mut left = everything(&channel).map_err(failed)?;
        let missing = || ServerError::system("find a socket and a lock")(Errno::NOENT);
        let listener = left.remove(&Key::Listener).ok_or_else(missing)?;
        let lock = left.remove(&Key::Lock).ok_or_else(missing)?;
        // The keeper has made the channel, so it is the peer of both ends.
        let parent = crate::peer::process(&channel);
        let custody = Custody::new(channel);
        let (broker, last) = match predecessor(&left, options) {
            Ok(taken) => taken,
            Err(why) => {
                log(format_args!(
                    "cannot take over from the broker before: {why}; its {} connections end",
                    left.keys().filter(|key| is_connection(key)).count()
                ));
                give_up(&custody, &mut left);
                (Broker::new(settings(options), now_ms()), None)
            }
        };
        let connections = connections(&mut left);
        left.remove(&Key::Journal);
        let objects = Objects::take_over(custody, left, |segid| broker.object_of(segid));
        let mut server = Self::new(listener, broker, objects)?;
        server.kept = Some(Kept {
            lock,
            command,
            parent,
            child: None,
        });
        let keeper = rustix::process::getppid();
        let keeper = keeper.map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
        server.broker.set_keeper(keeper);
        server.watch_keeper();
        server.go_on(last.unwrap_or_default(), connections);
        server.objects.custody.tell(&Message::Ready);
        Ok(server)
    }

    /// Brings state and world together, and says what was not said.
    fn go_on(&mut self, last: Record, connections: Vec<(PeerId, OwnedFd, Option<OwnedFd>)>) {
        let ids = connections.iter().map(|(peer, ..)| peer.0);
        self.last_peer = ids.fold(self.last_peer, u64::max);
        let (known, new): (Vec<_>, Vec<_>) = connections
            .into_iter()
            .partition(|(peer, ..)| self.broker.knows(*peer));
        for (peer, socket, process) in known {
            if let Some((_, seq)) = last.served.filter(|(served, _)| *served == peer) {
                take_out(&socket, seq);
            }
            self.welcome(peer, socket, process);
        }
        for segid in self.broker.live_arenas().collect::<Vec<_>>() {
            // Out of memory at worst; a reader's next request advances.
            let _ = self.watch(segid);
        }
        // From here on a death costs nothing new: what was not said is said
        // again by the next one.
        self.begin_journal(last.clone());
        for redo in last.redo {
            if let Some(effect) = effect_of(redo) {
                // Who cannot be reached is noticed at its socket.
                let _ = self.say(effect);
            }
            if let Some(journal) = &mut self.journal {
                journal.said();
            }
        }
        self.objects.prune(&self.broker);
        let here: Vec<PeerId> = self.connections.keys().copied().collect();
        self.with_broker(None, |broker, env| {
            broker.take_over(|peer| here.contains(&peer), env);
        });
        for (peer, socket, process) in new {
            self.welcome(peer, socket, process);
        }
    }

    fn watch_keeper(&self) {
        if let Some(fd) = self.objects.custody.fd() {
            // Without memory for this the next message finds out.
            let source = Source::Keeper.pack();
            let _ = epoll::add(&self.epoll, fd, source, epoll::EventFlags::IN);
        }
    }

    /// Starts another keeper if there should be one and is not.
    pub(super) fn renew_keeper(&mut self) {
        if self.done || !self.objects.custody.is_lost() {
            return;
        }
        let Some(kept) = &mut self.kept else {
            return;
        };
        // It may merely hang: were it to go on, it would find this process
        // dead one day and start a broker where another keeper's is.
        if let Some(parent) = kept.parent.take() {
            crate::keeper::end(&parent);
        }
        if let Some(mut child) = kept.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let started = Channel::pair().and_then(|(ours, theirs)| {
            let child = kept.command.start_keeper(theirs)?;
            Ok((ours, child))
        });
        let (channel, child) = match started {
            Ok((channel, child)) => (Some(channel), Some(child)),
            Err(errno) => {
                log(format_args!(
                    "the keeper is gone and there is no other: {errno}"
                ));
                (None, None)
            }
        };
        self.broker
            .set_keeper(child.as_ref().map_or(0, std::process::Child::id));
        kept.child = child;
        self.objects.custody.replace(channel);
        if self.objects.custody.is_wanted() {
            log(format_args!("the keeper is gone: another one takes over"));
            self.deposit_everything();
            self.watch_keeper();
        }
    }

    fn deposit_everything(&mut self) {
        self.begin_journal(Record::default());
        let custody = &self.objects.custody;
        custody.put(Key::Listener, &self.listener);
        if let Some(kept) = &self.kept {
            custody.put(Key::Lock, &kept.lock);
        }
        if let Ok(process) = crate::keeper::this_process() {
            custody.put(Key::Broker, process);
        }
        for (peer, connected) in &self.connections {
            custody.put(Key::Connection(*peer), &connected.socket);
            if let Some(process) = &connected.process {
                custody.put(Key::Process(*peer), process);
            }
        }
        self.objects.deposit();
        custody.tell(&Message::End);
    }

    /// Tells the keeper that it is over.
    pub(super) fn say_goodbye(&mut self) {
        self.objects.custody.tell(&Message::Leaving);
    }
}

/// Everything up to [`Message::End`].
pub(crate) fn everything(channel: &Channel) -> Result<Left, Errno> {
    let mut left = Left::new();
    loop {
        match channel.hear()? {
            Some(Message::Put(key, fd)) => drop(left.insert(key, fd)),
            Some(Message::Drop(key)) => drop(left.remove(&key)),
            Some(Message::End) => return Ok(left),
            Some(_) => return Err(Errno::PROTO),
            None => return Err(Errno::PIPE),
        }
    }
}

/// The state that was left, and the last event; a new one if there is none.
fn predecessor(left: &Left, options: Options) -> Result<(Broker, Option<Record>), String> {
    let mut broker = Broker::new(settings(options), now_ms());
    let Some(journal) = left.get(&Key::Journal) else {
        return Ok((broker, None));
    };
    let mut records = super::journal::read(journal).map_err(|error| error.to_string())?;
    for record in &records {
        let applied = broker.apply(&record.changes);
        applied.map_err(|error| error.to_string())?;
    }
    let last = records.pop().map(|last| Record {
        changes: Vec::new(),
        ..last
    });
    Ok((broker, last))
}

fn is_connection(key: &Key) -> bool {
    matches!(key, Key::Connection(_))
}

/// Ends every connection and lets go of everything.
fn give_up(custody: &Custody, left: &mut Left) {
    for (key, fd) in core::mem::take(left) {
        if is_connection(&key) {
            let _ = shutdown(&fd, Shutdown::Both);
        }
        custody.withdraw(key);
    }
}

fn connections(left: &mut Left) -> Vec<(PeerId, OwnedFd, Option<OwnedFd>)> {
    let peers: Vec<PeerId> = left
        .keys()
        .filter_map(|key| match key {
            Key::Connection(peer) => Some(*peer),
            _ => None,
        })
        .collect();
    let take = |peer| {
        let socket = left.remove(&Key::Connection(peer))?;
        Some((peer, socket, left.remove(&Key::Process(peer))))
    };
    peers.into_iter().filter_map(take).collect()
}

/// Takes the request `seq` out of a socket if it is there: it is done.
fn take_out(socket: &OwnedFd, seq: u32) {
    let is_it = |packet: &crate::wire::socket::Packet| {
        !packet.bytes.is_empty() && crate::wire::seq_of(&packet.bytes) == seq
    };
    if peek(socket).is_ok_and(|packet| is_it(&packet)) {
        let _ = discard(socket);
    }
}

fn effect_of(redo: Redo) -> Option<Effect> {
    Some(match redo {
        Redo::Send { peer, bytes, fds } => {
            let (seq, reply) = Reply::decode(&bytes).ok()?;
            Effect::Send {
                peer,
                seq,
                reply,
                fds,
            }
        }
        Redo::Notify { target, count } => Effect::Notify { target, count },
        Redo::ClearSlot(enclave, slot) => Effect::ClearSlot(enclave, slot),
        Redo::Disconnect(peer) => Effect::Disconnect(peer),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Retention;
    use crate::wire::socket::{receive, send};
    use crate::wire::{Request, Role, seq_of};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::time::Duration;

    /// A broker for a keeper that has `kept`, and the keeper's end.
    fn broker(kept: &Left) -> (Server, Channel) {
        let (theirs, ours) = Channel::pair().expect("a channel");
        for (key, fd) in kept {
            theirs.put(*key, fd).expect("taken");
        }
        theirs.tell(&Message::End).expect("heard");
        let options = Options {
            linger: Duration::from_secs(60),
            rings_per_second: 1,
            retention: Retention {
                for_ms: 0,
                bytes_per_user: 0,
            },
            owner_uid: None,
        };
        let command = Command {
            socket: "/nowhere".into(),
            options,
            deaths_per_minute: 1,
            user: None,
        };
        let server = Server::for_keeper(ours, options, command).expect("a broker");
        (server, theirs)
    }

    /// What the keeper has after the death of `server`.
    fn kept_of(mut kept: Left, server: Server, channel: &Channel) -> Left {
        drop(server);
        while let Ok(Some(message)) = channel.hear() {
            match message {
                Message::Put(key, fd) => drop(kept.insert(key, fd)),
                Message::Drop(key) => drop(kept.remove(&key)),
                _ => {}
            }
        }
        kept
    }

    fn sockets() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::SEQPACKET;
        socketpair(AddressFamily::UNIX, kind, flags, None).expect("two ends")
    }

    #[test]
    fn a_request_that_changed_nothing_is_served_once_too() {
        let (listener, _) = sockets();
        let lock = rustix::io::dup(&listener).expect("a descriptor");
        let kept = Left::from([(Key::Listener, listener), (Key::Lock, lock)]);
        let (mut first, channel) = broker(&kept);
        let (client, socket) = sockets();
        let peer = PeerId(1);
        first.objects.custody.put(Key::Connection(peer), &socket);
        first.welcome(peer, socket, None);
        let hello = Request::Hello {
            role: Role::Consumer,
            abi_version: enclave_abi::ABI_VERSION,
        };
        send(&client, &hello.encode(1), &[]).expect("sent");
        first.receive(peer);
        // It dies when it has answered this and not taken it out of the socket.
        send(&client, &Request::Status.encode(2), &[]).expect("sent");
        first.answer(peer);
        let kept = kept_of(kept, first, &channel);
        let (second, _channel) = broker(&kept);
        let socket = &second.connections.get(&peer).expect("goes on").socket;
        assert_eq!(peek(socket).map(|_| ()), Err(Errno::AGAIN));
        let mut seqs = Vec::new();
        while let Ok(reply) = receive(&client) {
            seqs.push(seq_of(&reply.bytes));
        }
        assert_eq!(seqs, [1, 2]);
    }
}
