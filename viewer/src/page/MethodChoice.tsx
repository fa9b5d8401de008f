import type { Catalogue } from "./api";
import { lacks, recommend } from "./methods";

interface MethodChoiceProps {
  catalogue: Catalogue;
  images: number;
  good: number;
  method: string;
  compared: string[];
  error?: string | null;
  onMethod: (method: string) => void;
  onCompared: (methods: string[]) => void;
}

/** The method: recommended by what was given, chosen, or several to compare. The reason is shown. */
export function MethodChoice({ catalogue, images, good, method, compared, error, onMethod, onCompared }: MethodChoiceProps) {
  const chosen = catalogue.methods.find((one) => one.name === method), best = recommend(images, good);
  const problem = chosen && images ? lacks(chosen, images, good) : null;
  const about = method === "automatic" ? `${best.method}: ${best.reason}.` : method === "several" ? "Images are encoded once for all methods." : `${chosen?.about ?? ""}.`;
  return <>
    <label for="method">Method</label>
    <select id="method" value={method} aria-describedby="method-about" onChange={(event) => onMethod(event.currentTarget.value)}>
      <option value="automatic">recommended ({best.method})</option>
      <option value="several">compare several</option>
      {catalogue.methods.map((one) => <option value={one.name} key={one.name}>{one.name}</option>)}
    </select>
    <span class="facts" id="method-about">{about}</span>
    {problem && <span class="field-error" role="status">{method} {problem}. <button type="button" class="link" onClick={() => onMethod("automatic")}>Use {best.method}</button></span>}
    {method === "several" && <fieldset id="compared"><legend>Methods to compare</legend>
      {catalogue.methods.map((one) => (
        <label key={one.name} title={one.about}><input type="checkbox" value={one.name} checked={compared.includes(one.name)}
          onChange={(event) => onCompared(event.currentTarget.checked ? [...compared, one.name] : compared.filter((name) => name !== one.name))} /> {one.name}</label>
      ))}
    </fieldset>}
    {error && <span class="field-error" role="alert">{error}</span>}
  </>;
}
