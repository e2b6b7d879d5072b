//! stub
use actix::*;
/// stub
pub struct AdminActor;
impl Actor for AdminActor {
    type Context = Context<Self>;
}
impl Handler<crate::cluster::ClusterChanged> for AdminActor {
    type Result = ();
    fn handle(&mut self, _: crate::cluster::ClusterChanged, _: &mut Context<Self>) {}
}
impl Handler<crate::transport::Inbound> for AdminActor {
    type Result = ();
    fn handle(&mut self, _: crate::transport::Inbound, _: &mut Context<Self>) {}
}
