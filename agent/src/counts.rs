//! How often each rule has decided on this node: read from the datapath's counts whenever somebody asks.

use tartan_api::explain::Count;
use tartan_kernel::KernelError;
use tartan_kernel::nft::Nft;
use tartan_netstate::claims::NFT_JUDGED_SET;

use crate::denied::Names;

/// Since the nft table was made, by the rules that there are now. The kernel is asked on a thread that may wait.
pub(crate) async fn read((_, rules): Names) -> Result<Vec<Count>, KernelError> {
    let named = move || Ok(tartan_policy::counts::named(&rules, &Nft::open()?.counts(NFT_JUDGED_SET)?));
    tokio::task::spawn_blocking(named).await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
