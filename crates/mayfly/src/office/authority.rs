//! What operators order of the authorities. The keeper has them.

use mayfly_core::{Author, Denial};
use mayfly_serve::office::{
    AuthorityChange, AuthorityLine, AuthorityOrder as Wished, AuthorityWish, Refusal,
};
use mayfly_sign::{AuthorityOrder, AuthorityView, Standing};
use tokio::sync::{mpsc::error::TrySendError, oneshot};

use super::LocalOffice;
use crate::keeper::Order;

impl LocalOffice {
    pub(super) async fn change_authority(
        &self,
        wish: AuthorityWish,
        author: Author,
    ) -> Result<AuthorityChange, Refusal> {
        let order = match wish.order {
            Wished::Prepare => AuthorityOrder::Prepare,
            Wished::Activate(id) => AuthorityOrder::Activate(id),
            Wished::Taint(id) => AuthorityOrder::Taint(id),
            Wished::Revoke(id) => AuthorityOrder::Revoke(id),
        };
        let (answer, told) = oneshot::channel();
        let order = Order { kind: wish.kind, order, author, answer };
        self.0.orders.try_send(order).map_err(|full_or_gone| match full_or_gone {
            TrySendError::Full(_) => Denial::Overloaded,
            TrySendError::Closed(_) => Denial::NotServing,
        })?;
        let tasks = told.await.map_err(|_stopping| Denial::NotServing)??;
        Ok(AuthorityChange { authorities: self.authorities(), tasks })
    }

    pub(super) fn authorities(&self) -> Vec<AuthorityLine> {
        self.0.authorities.borrow().iter().map(line).collect()
    }
}

fn line(view: &AuthorityView) -> AuthorityLine {
    AuthorityLine {
        kind: match view.kind {
            mayfly_core::Kind::X509 => "x509",
            mayfly_core::Kind::Jwt => "jwt",
        },
        id: view.key_id.clone(),
        state: match view.standing {
            Standing::Active => "active",
            Standing::Prepared => "prepared",
            Standing::Old(_) => "old",
            Standing::Tainted(_) => "tainted",
        },
        not_after: view.expires,
    }
}
