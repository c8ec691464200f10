//! Commands over a connection that the agent opens.

use hy2_master_sdk::rpc::reverse::ReverseError;
use hy2_proto::control::rpc::node_manager_server::{NodeManager, NodeManagerServer};
use hy2_proto::control::rpc::session_response::Event as Down;
use hy2_proto::control::{ALPN_REVERSE, rpc};
use tokio::io::AsyncWriteExt;
use tokio_stream::Empty;
use tonic::{Request, Response, Status};

use crate::agent::{Agent, Session, TestMaster, eventually};

#[tokio::test]
async fn the_master_commands_a_node_over_a_connection_that_the_node_opened() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let node = agent.node().await;
    assert!(matches!(
        master.master.node_client(node).await,
        Err(ReverseError::NotConnected)
    ));
    let mut session = agent.session().await;
    let serve = async {
        let ticket = ticket(&mut session).await;
        serve(&agent, &ticket).await
    };
    let (client, server) = tokio::join!(master.master.node_client(node), serve);
    let mut client = client.unwrap();
    let info = client
        .get_info(rpc::GetInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(info.info.unwrap().name, "stub");
    // The connection is used again.
    let mut again = master.master.node_client(node).await.unwrap();
    let kicked = rpc::KickSessionsRequest {
        user_ids: vec![1, 2, 3],
        connection_ids: Vec::new(),
    };
    assert_eq!(
        again
            .kick_sessions(kicked)
            .await
            .unwrap()
            .into_inner()
            .closed,
        3
    );
    // A revocation cuts it too.
    master.master.revoke_node(node, "stolen").await.unwrap();
    eventually("the connection is cut", async || {
        again.get_info(rpc::GetInfoRequest {}).await.is_err()
    })
    .await;
    drop(server);
}

#[tokio::test]
async fn all_who_command_a_node_at_once_wait_for_one_connection() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let node = agent.node().await;
    let mut session = agent.session().await;
    let commands = futures_util::future::join_all((0..20).map(|_| async {
        let mut client = master.master.node_client(node).await?;
        let info = client.get_info(rpc::GetInfoRequest {}).await;
        assert!(info.is_ok(), "{info:?}");
        Ok::<_, ReverseError>(())
    }));
    let serve = async {
        let first = ticket(&mut session).await;
        // Lost, as with a connection that fails: it is asked for once more.
        let again = ticket(&mut session).await;
        assert_eq!(first, again);
        serve(&agent, &first).await
    };
    let (commands, server) = tokio::join!(commands, serve);
    for command in commands {
        command.unwrap();
    }
    drop(server);
}

#[tokio::test]
async fn who_gave_up_waiting_is_in_nobody_s_way() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let node = agent.node().await;
    let mut session = agent.session().await;
    let first = {
        let asked = master.master.node_client(node);
        tokio::select! {
            _ = asked => panic!("nobody opened anything"),
            first = ticket(&mut session) => first,
        }
    };
    let work = async {
        let next = ticket(&mut session).await;
        assert_ne!(first, next);
        serve(&agent, &next).await
    };
    let (client, server) = tokio::join!(master.master.node_client(node), work);
    client.unwrap();
    drop(server);
}

#[tokio::test]
async fn a_ticket_of_another_node_opens_nothing() {
    let master = TestMaster::start().await;
    let (one, two) = (master.agent("one").await, master.agent("two").await);
    let node = one.node().await;
    let mut session = one.session().await;
    let work = async {
        let ticket = ticket(&mut session).await;
        // The thief is closed; the node itself still gets through.
        let mut stream = two.tls(ALPN_REVERSE, true).await.unwrap();
        stream
            .write_all(&[u8::try_from(ticket.len()).unwrap()])
            .await
            .unwrap();
        stream.write_all(&ticket).await.unwrap();
        let closed = tokio::io::AsyncReadExt::read_u8(&mut stream).await;
        assert!(closed.is_err());
        serve(&one, &ticket).await
    };
    let (client, server) = tokio::join!(master.master.node_client(node), work);
    assert!(
        client
            .unwrap()
            .get_info(rpc::GetInfoRequest {})
            .await
            .is_ok()
    );
    drop(server);
}

/// Waits for the master to ask for a connection.
async fn ticket(session: &mut Session) -> Vec<u8> {
    loop {
        if let Down::OpenReverse(open) = session.next().await.expect("the session stays") {
            return open.ticket.to_vec();
        }
    }
}

/// Serves until it is dropped.
struct Serving(tokio::task::JoinHandle<()>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens a connection with a ticket, and serves on it.
async fn serve(agent: &Agent, ticket: &[u8]) -> Serving {
    let mut stream = agent.tls(ALPN_REVERSE, true).await.unwrap();
    stream
        .write_all(&[u8::try_from(ticket.len()).unwrap()])
        .await
        .unwrap();
    stream.write_all(ticket).await.unwrap();
    stream.flush().await.unwrap();
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(Io(stream)));
    Serving(tokio::spawn(async move {
        let served = tonic::transport::Server::builder()
            .add_service(NodeManagerServer::new(Stub))
            .serve_with_incoming(incoming)
            .await;
        drop(served);
    }))
}

struct Io(tokio_rustls::client::TlsStream<tokio::net::TcpStream>);

impl tonic::transport::server::Connected for Io {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl tokio::io::AsyncRead for Io {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Io {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

struct Stub;

#[tonic::async_trait]
impl NodeManager for Stub {
    async fn get_info(
        &self,
        _: Request<rpc::GetInfoRequest>,
    ) -> Result<Response<rpc::GetInfoResponse>, Status> {
        Ok(Response::new(rpc::GetInfoResponse {
            info: Some(rpc::NodeInfo {
                name: "stub".to_owned(),
                ..Default::default()
            }),
        }))
    }

    async fn kick_sessions(
        &self,
        request: Request<rpc::KickSessionsRequest>,
    ) -> Result<Response<rpc::KickSessionsResponse>, Status> {
        let closed = u32::try_from(request.into_inner().user_ids.len()).unwrap();
        Ok(Response::new(rpc::KickSessionsResponse { closed }))
    }

    async fn get_stats(
        &self,
        _: Request<rpc::GetStatsRequest>,
    ) -> Result<Response<rpc::GetStatsResponse>, Status> {
        Err(Status::unimplemented("stub"))
    }

    type ListSessionsStream = Empty<Result<rpc::ListSessionsResponse, Status>>;

    async fn list_sessions(
        &self,
        _: Request<rpc::ListSessionsRequest>,
    ) -> Result<Response<Self::ListSessionsStream>, Status> {
        Err(Status::unimplemented("stub"))
    }

    async fn set_user_rate(
        &self,
        _: Request<rpc::SetUserRateRequest>,
    ) -> Result<Response<rpc::SetUserRateResponse>, Status> {
        Err(Status::unimplemented("stub"))
    }

    async fn set_state(
        &self,
        _: Request<rpc::SetStateRequest>,
    ) -> Result<Response<rpc::SetStateResponse>, Status> {
        Err(Status::unimplemented("stub"))
    }

    type TailLogsStream = Empty<Result<rpc::TailLogsResponse, Status>>;

    async fn tail_logs(
        &self,
        _: Request<rpc::TailLogsRequest>,
    ) -> Result<Response<Self::TailLogsStream>, Status> {
        Err(Status::unimplemented("stub"))
    }

    type RunDiagnosticsStream = Empty<Result<rpc::RunDiagnosticsResponse, Status>>;

    async fn run_diagnostics(
        &self,
        _: Request<rpc::RunDiagnosticsRequest>,
    ) -> Result<Response<Self::RunDiagnosticsStream>, Status> {
        Err(Status::unimplemented("stub"))
    }

    async fn check_config(
        &self,
        _: Request<rpc::CheckConfigRequest>,
    ) -> Result<Response<rpc::CheckConfigResponse>, Status> {
        Err(Status::unimplemented("stub"))
    }

    async fn restart_engine(
        &self,
        _: Request<rpc::RestartEngineRequest>,
    ) -> Result<Response<rpc::RestartEngineResponse>, Status> {
        Err(Status::unimplemented("stub"))
    }
}
