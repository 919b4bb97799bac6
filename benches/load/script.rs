//! Which loops are run, in which order.

use std::{path::PathBuf, sync::Arc};

use crate::{
    drive::{self, Call, Pass},
    floor,
    house::House,
    measure::{Fault, Floor, is_quick, say},
    meter::Meter,
    told::Told,
    words::Words,
    workload::{Connections, NewConnection, Token, Warm},
};

/// Of what was answered in a closed loop, the shares that are tried at a rate until one is held.
const SHARES: [f64; 8] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.2];
/// Of the highest rate that was held: where latencies are told.
const USUAL: f64 = 0.7;
/// Calls of somebody who is alone.
const ALONE: usize = 1_000;
const ALONE_QUICK: usize = 30;
/// Calls before the first that counts.
const COLD: usize = 10;

pub(crate) struct Script<'a> {
    pub(crate) words: &'a Words,
    pub(crate) meter: Meter,
    /// Whether a server that fails is one that was asked for too much: the bare library has no bounds that
    /// callers hear of, and closes connections.
    pub(crate) is_bare: bool,
}

impl Script<'_> {
    /// Begin → certificate with nobody else there.
    pub(crate) async fn one_at_a_time(
        &self,
        house: &House,
        floor: &mut Floor,
        told: &mut Told,
    ) -> Result<(), Fault> {
        let count = if is_quick() { ALONE_QUICK } else { ALONE };
        // First calls find the client's and the broker's connections cold.
        drive::alone(&house.lives(), COLD, &self.meter).await?.check()?;
        floor.sample()?;
        let pass = drive::alone(&house.lives(), count, &self.meter).await?.check()?;
        told.line("begin, own socket, connection, certificate: one at a time", &pass);
        told.figure("begin_to_svid_p50_ms", pass.wait_ms(0.5));
        told.figure("begin_to_svid_p99_ms", pass.wait_ms(0.99));
        told.figure("begin_to_svid_p999_ms", pass.wait_ms(0.999));
        let pass = drive::alone(&house.own_lives()?, count, &self.meter).await?.check()?;
        told.line("begin, process, connection, certificate: one at a time", &pass);
        told.figure("begin_to_svid_process_p50_ms", pass.wait_ms(0.5));
        told.figure("begin_to_svid_process_p99_ms", pass.wait_ms(0.99));
        for _ in 0..count.min(100) {
            floor.sample()?;
        }
        Ok(())
    }

    /// The same where all answers are ready.
    pub(crate) async fn one_at_least(
        &self,
        floor: &floor::Floor,
        told: &mut Told,
    ) -> Result<(), Fault> {
        let count = if is_quick() { ALONE_QUICK } else { ALONE };
        drive::alone(&floor.lives(), COLD, &self.meter).await?.check()?;
        let pass = drive::alone(&floor.lives(), count, &self.meter).await?.check()?;
        told.line("floor: a call with a line on disk, connection, canned", &pass);
        told.figure("floor_alone_p50_ms", pass.wait_ms(0.5));
        told.figure("floor_alone_p99_ms", pass.wait_ms(0.99));
        Ok(())
    }

    /// What SPIFFE defines, on whatever server.
    pub(crate) async fn workload(
        &self,
        sockets: &[Arc<PathBuf>],
        told: &mut Told,
    ) -> Result<(), Fault> {
        let anew = Arc::new(NewConnection(sockets.to_vec()));
        self.closed("FetchX509SVID, a new connection", ("x509_new", &anew), told).await?;
        let connections = Connections::open(sockets).await?;
        let warm = Arc::new(Warm(connections.clone()));
        self.closed("FetchX509SVID, warm", ("x509_warm", &warm), told).await?;
        let token = Arc::new(Token(connections));
        if let Some(rate) = self.words.rate {
            let pass = self.at(&token, rate).await?;
            told.line(&format!("FetchJWTSVID, {rate:.0} due a second"), &pass);
            told.keep("jwt_open", &pass);
            return pass.check().map(drop);
        }
        self.usual(("FetchJWTSVID", "jwt"), &token, told).await?;
        Ok(())
    }

    /// Begin → certificate → end, in a crowd.
    pub(crate) async fn lives(&self, house: &House, told: &mut Told) -> Result<(), Fault> {
        let lives = Arc::new(house.lives());
        let pass =
            self.usual(("begin, own socket, certificate, end", "life"), &lives, told).await?;
        told.figure("begin_to_svid_p99_at_70_ms", pass.wait_ms(0.99));
        Ok(())
    }

    /// The same where all answers are ready.
    pub(crate) async fn lives_at_least(&self, floor: &floor::Floor, told: &mut Told) {
        let lives = Arc::new(floor.lives());
        let what = "floor: two calls with a line on disk, a canned certificate";
        // Nothing of ours is wrong where the bare library breaks at every rate, as it may on a machine that is full.
        match self.usual((what, "floor"), &lives, told).await {
            Ok(pass) => told.figure("floor_p99_at_70_ms", pass.wait_ms(0.99)),
            Err(why) => say(&format!("SKIPPED: the floor at 70 %: {why}")),
        }
    }

    async fn closed<C: Call>(
        &self,
        what: &str,
        (name, call): (&str, &Arc<C>),
        told: &mut Told,
    ) -> Result<Pass, Fault> {
        let in_flight = self.words.in_flight;
        let pass = drive::closed(call, (in_flight, self.words.lasting), &self.meter).await?;
        let pass = pass.check()?;
        told.line(&format!("{what}: {in_flight} in flight"), &pass);
        told.keep(name, &pass);
        Ok(pass)
    }

    async fn at<C: Call>(&self, call: &Arc<C>, rate: f64) -> Result<Pass, Fault> {
        drive::open(call, (rate, self.words.lasting), &self.meter).await
    }

    /// The highest rate that is held, and the waits at seven tenths of it.
    async fn usual<C: Call>(
        &self,
        (what, name): (&str, &str),
        call: &Arc<C>,
        told: &mut Told,
    ) -> Result<Pass, Fault> {
        let most = self.closed(what, (name, call), told).await?.per_second;
        let mut held = None;
        for share in SHARES {
            let rate = most * share;
            let pass = self.at(call, rate).await?;
            told.line(&format!("{what}: {rate:.0} due a second"), &pass);
            if self.is_held(&pass, rate) {
                held = Some(rate);
                break;
            }
            say(&format!(
                "  not held: {} failed, {} put off, {} left out, {} under way at the end",
                pass.failed, pass.put_off, pass.left_out, pass.backlog
            ));
            // A server that refuses is not one that is slow.
            if pass.failed > 0 && !self.is_bare {
                return pass.check();
            }
        }
        let held = held.ok_or("no rate was held")?;
        let pass = self.at(call, held * USUAL).await?;
        let pass = pass.check()?;
        let rate = held * USUAL;
        told.line(&format!("{what}: {rate:.0} due a second, 70 % of what is held"), &pass);
        told.figure(&format!("{name}_held_per_second"), held);
        told.keep(&format!("{name}_at_70"), &pass);
        Ok(pass)
    }

    /// All was asked and answered, and what was under way at the end is no more than a closed loop has all
    /// the time and a tenth of a second's calls: what is due more often than it is answered piles up, and
    /// a stall of the disk does not.
    fn is_held(&self, pass: &Pass, rate: f64) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "a number of calls")]
        let under_way = pass.backlog.saturating_sub(self.words.in_flight) as f64;
        let all = pass.failed == 0 && pass.put_off == 0 && pass.left_out == 0;
        all && under_way <= rate / 10.0
    }
}
