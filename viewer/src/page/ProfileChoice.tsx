import { useRef } from "preact/hooks";
import { count } from "../format";
import type { ServedProfile } from "./api";

interface ProfileChoiceProps {
  served: ServedProfile[];
  profile: File | ServedProfile | null;
  onProfile: (profile: File | ServedProfile | null) => void;
}

/** The product profile: one that the page was started with, or a file. */
export function ProfileChoice({ served, profile, onProfile }: ProfileChoiceProps) {
  const picker = useRef<HTMLInputElement>(null);
  return <>
    <label for={served.length ? "served-profile" : "choose-profile"}>Product profile</label>
    {served.length > 0 && <select id="served-profile" value={profile ? profile.name : ""}
      onChange={(event) => onProfile(served.find((one) => one.name === event.currentTarget.value) ?? null)}>
      {served.map((one) => <option value={one.name} key={one.name}>{one.name}</option>)}
      {profile instanceof File && <option value={profile.name}>{profile.name}</option>}
      <option value="">without profile</option>
    </select>}
    <span class="drop-buttons" id="profile">
      {!profile ? <span class="facts">Optional: object, method, known-good images and threshold in one file.</span>
        : <span class="chosen" role="status">{profile instanceof File ? profile.name : describe(profile)}</span>}
      <button type="button" class="small" id="choose-profile" onClick={() => picker.current!.click()}>Profile…</button>
      {profile && <button type="button" class="small" id="profile-clear" onClick={() => onProfile(null)}>Without profile</button>}
      <input type="file" hidden ref={picker} accept=".clipspect" class="pick-profile" aria-label="Product profile"
        onChange={(event) => { onProfile(event.currentTarget.files?.[0] ?? null); event.currentTarget.value = ""; }} />
    </span>
  </>;
}

const describe = ({ object, methods, good, thresholds }: ServedProfile): string =>
  `${object}: ${methods.join(", ")}; ${count(good, "known-good image")}; threshold ${thresholds.map((one) => one?.toFixed(2) ?? "none").join(", ")}`;
