import { useEffect, useState } from "preact/hooks";

/** Link to the overlay file beside the report, shown only if the file is there: a mailed report has none. */
export function OverlayLink({ address }: { address: string }) {
  const [there, setThere] = useState(false);
  useEffect(() => {
    setThere(false);
    const probe = new Image();
    probe.onload = () => setThere(true);
    probe.src = address;
    return () => (probe.onload = null);
  }, [address]);
  return there ? <p><a id="view-overlay" href={address} target="_blank" rel="noopener">Open the large overlay</a></p> : null;
}
