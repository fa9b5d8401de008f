import { useState } from "preact/hooks";
import { save } from "../download";
import { makeProfile, Refusal, type Inquiry, type Progress } from "./api";

const MAX_NAME = 63;

/** A name that the service accepts, from an object's name. */
export const profileName = (text: string): string =>
  text.toLowerCase().replace(/[^a-z0-9._-]+/g, "-").replace(/^[^a-z0-9]+|[-.]+$/g, "").slice(0, MAX_NAME) || "product";

/** Save object, methods, known-good images and thresholds as a product profile. */
export function SaveProfile({ inquiry }: { inquiry: Inquiry }) {
  const [name, setName] = useState(profileName(inquiry.object)), [progress, setProgress] = useState<Progress | null>(null), [error, setError] = useState("");
  const start = async (): Promise<void> => {
    setError("");
    setProgress({ stage: "sending the known-good images", done: 0, total: 0, seconds: 0 });
    try {
      const wanted = profileName(name);
      save(`${wanted}.clipspect`, await makeProfile(inquiry, wanted, setProgress));
    } catch (reason) {
      setError(reason instanceof Refusal ? reason.message : `The service cannot be reached: ${(reason as Error).message}`);
    } finally {
      setProgress(null);
    }
  };
  return (
    <div class="live save-profile">
      <label for="profile-name">Product profile</label>
      <input type="text" id="profile-name" maxLength={MAX_NAME} value={name} onInput={(event) => setName(event.currentTarget.value)} />
      <button type="button" class="small" id="save-profile" disabled={progress !== null} onClick={() => void start()}>Save profile</button>
      <span role="status">{progress ? `${progress.stage}${progress.total ? ` ${progress.done} of ${progress.total}` : ""}` : "Holds the method and the known-good images with their threshold."}</span>
      {error && <span class="field-error" role="alert">{error}</span>}
    </div>
  );
}
