//! ▶ What DiscoveryActor hears from other nodes: heartbeats, questions about a third, answers.

use super::*;

impl DiscoveryActor {
    pub(super) fn hear(
        &mut self,
        from: NodeId,
        incarnation: Incarnation,
        envelope: Envelope,
        ctx: &mut Context<Self>,
    ) {
        match envelope.message {
            Message::Heartbeat(beat) => self.hear_beat(from, incarnation, beat),
            Message::Probe(probe) => self.answer_probe(from, probe, ctx),
            Message::ProbeAnswer(answer) => {
                self.hear_witness(from, &answer);
                self.turn(ctx);
            }
            Message::YourTurn(turn) => self.take_turn(&turn, ctx),
            Message::DialBack(back) => hear_dial_back(&back),
            Message::Fenced(fenced) => self.epoch_seen(fenced.epoch, ctx),
            // Not for this desk; the transport sends nothing else here.
            _ => {}
        }
    }

    pub(super) fn hear_beat(&mut self, from: NodeId, incarnation: Incarnation, beat: Heartbeat) {
        let now = now();
        if from == self.me() {
            // To ourselves and back: how late transport and control are together.
            let sent = Duration::from_micros(beat.sent_us);
            let late = now
                .saturating_duration_since(self.origin)
                .saturating_sub(sent);
            self.health.late(late);
            return;
        }
        let fence = self.seed.fence.current();
        if let Some((epoch, _)) = beat.master.filter(|(epoch, _)| *epoch < fence) {
            let fenced = Fenced {
                epoch: fence,
                refused: epoch,
                what: "Heartbeat".to_owned(),
            };
            self.send(from, fenced);
        }
        let rtt = beat.echo.and_then(|(sent, held)| {
            let now_us = self.us_since_origin(now);
            Some(Duration::from_micros(
                now_us.checked_sub(sent)?.checked_sub(held)?,
            ))
        });
        self.echoes.insert(from, (beat.sent_us, now));
        let Some(peer) = self.table.peer(from, incarnation) else {
            self.echoes.remove(&from);
            return;
        };
        if beat.draining {
            self.leavers.send_replace(Some(from));
        }
        peer.detector.beat(now);
        peer.heard = now;
        peer.beat = beat;
        if let Some(rtt) = rtt {
            peer.rtt = Some(peer.rtt.map_or(rtt, |old| old * 7 / 8 + rtt / 8));
        }
    }

    /// Somebody doubts a peer: do we hear it? If not, what does a dial find?
    pub(super) fn answer_probe(&mut self, from: NodeId, probe: Probe, ctx: &mut Context<Self>) {
        let now = now();
        let floor = self.seed.settings.suspect_floor;
        let Some(peer) = self.table.peer(probe.target, probe.incarnation) else {
            return;
        };
        let silent = now.saturating_duration_since(peer.heard);
        if peer.link == Link::Up && silent < floor {
            self.send(from, answer(&probe, Finding::Heard));
            return;
        }
        if let Some((Finding::Refused, _)) = peer.dialled {
            self.send(from, answer(&probe, Finding::Refused));
            return;
        }
        let address = peer.registered.registration.address();
        // At once, for a verdict waits for it; what a dial finds corrects it.
        self.send(from, answer(&probe, Finding::Silent));
        let look = self.seed.transport.dial.send(Dial { address });
        ctx.spawn(look.into_actor(self).map(move |outcome, act, _| {
            let finding = match outcome {
                Ok(DialOutcome::Answered {
                    id, incarnation, ..
                }) if id == probe.target && incarnation == probe.incarnation => Finding::Heard,
                Ok(DialOutcome::Refused) => Finding::Refused,
                _ => return,
            };
            act.send(from, answer(&probe, finding));
        }));
    }

    pub(super) fn hear_witness(&mut self, from: NodeId, answer: &ProbeAnswer) {
        let now = now();
        if let Some(peer) = self.table.peer(answer.target, answer.incarnation) {
            peer.witnesses.insert(from, (answer.finding, now));
        }
    }

    pub(super) fn take_turn(&mut self, turn: &YourTurn, ctx: &mut Context<Self>) {
        let current = self.view.master.as_ref().map(|m| m.epoch);
        if self.retired() {
            // Says so at once, so that the master need not wait.
            self.beat(now());
        }
        if self.claiming || self.retired() || current != Some(turn.epoch) {
            return;
        }
        log::info!(target: "discovery", event = "master.offered", epoch = turn.epoch.to_string(), reason = turn.why.as_str(); "the master hands over to this node");
        self.claim(turn.epoch.revision, ctx);
    }

    pub(super) fn dial_failed(
        &mut self,
        id: NodeId,
        incarnation: Incarnation,
        outcome: &DialOutcome,
    ) {
        let finding = match outcome {
            DialOutcome::Refused => Finding::Refused,
            // Somebody answered at that address, though not as this peer: it says nothing of the peer.
            DialOutcome::Answered { .. } | DialOutcome::Turned(_) | DialOutcome::Silent(_) => {
                Finding::Silent
            }
        };
        let now = now();
        let Some(peer) = self.table.peer(id, incarnation) else {
            return;
        };
        let first = !matches!(peer.dialled, Some((Finding::Refused, _)));
        peer.dialled = Some((finding, now));
        if finding == Finding::Refused && first && peer.link == Link::Broken {
            // Every other member needs a second refusal: say so before being asked.
            let seen = ProbeAnswer {
                nonce: 0,
                target: id,
                incarnation,
                finding,
            };
            self.seed
                .transport
                .broadcast
                .do_send(Broadcast(seen.into()));
        }
    }
}
